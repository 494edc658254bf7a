"""References to secrets: where they are looked for, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.core.errors import SecretUnknownError
from perdure.runtime.secrets import LocalSecrets, environment_without


def test_the_environment_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "secrets.toml"
    path.write_text('github-token = "from-file"\nother = "only-file"\n')
    path.chmod(0o600)
    secrets = LocalSecrets({"PERDURE_SECRET_GITHUB_TOKEN": "from-environment"}, files=[path])
    assert secrets.resolve("secret://github-token") == "from-environment"
    assert secrets.resolve("secret://other") == "only-file"
    assert secrets.known_values() == ("from-environment", "only-file")
    assert "from" not in repr(secrets)


def test_providers_variables_and_container_files(tmp_path: Path) -> None:
    (tmp_path / "db").write_text("pass-word\n")
    secrets = LocalSecrets(
        {"OPENAI_API_KEY": "key-of-openai"},
        folders=[tmp_path],
        providers={"openai-api-key": "OPENAI_API_KEY"},
    )
    assert secrets.resolve("secret://openai-api-key") == "key-of-openai"
    assert secrets.resolve("secret://db") == "pass-word"


@pytest.mark.parametrize(
    "reference", ["", "sk-real-key-123456", "secret://", "secret://../x", "secret://a b", "Secret://x"]
)
def test_what_is_no_reference_is_refused_and_not_shown(reference: str) -> None:
    with pytest.raises(SecretUnknownError) as caught:
        LocalSecrets({}).resolve(reference)
    assert "sk-real" not in str(caught.value)


def test_an_unknown_secret_says_where_to_put_it() -> None:
    with pytest.raises(SecretUnknownError, match="PERDURE_SECRET_NOPE"):
        LocalSecrets({}).resolve("secret://nope")


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secrets.toml"
    path.write_text('a = "value-of-a"\n')
    path.chmod(0o644)
    with pytest.raises(SecretUnknownError, match="0644"):
        LocalSecrets({}, files=[path]).resolve("secret://a")


def test_a_broken_file_does_not_show_its_values(tmp_path: Path) -> None:
    path = tmp_path / "secrets.toml"
    path.write_text('a = "hidden-value\n')
    path.chmod(0o600)
    with pytest.raises(SecretUnknownError) as caught:
        LocalSecrets({}, files=[path]).resolve("secret://a")
    assert "hidden" not in str(caught.value)


def test_children_inherit_no_keys() -> None:
    found = environment_without(
        {
            "PATH": "/bin",
            "OPENAI_API_KEY": "k",
            "AWS_SECRET_ACCESS_KEY": "k",
            "PERDURE_SECRET_X": "k",
            "LC_ALL": "C",
            "MINE": "1",
        },
        keep=["MINE"],
    )
    assert found == {"PATH": "/bin", "LC_ALL": "C", "MINE": "1"}
