"""Secrets of this machine: ``secret://name`` from the environment, from files, from the keyring; never kept anywhere."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from perdure.core.errors import SecretUnknownError

SCHEME = "secret://"
PREFIX = "PERDURE_SECRET_"
FILE = "secrets.toml"
RUN_SECRETS = Path("/run/secrets")  # where container platforms put one file for each secret
SERVICE = "perdure"  # in the keyring
KNOWN_LENGTH_MIN = 6  # a shorter value would be found everywhere by accident
SECRET_BYTES_MAX = 64 * 1024
NAME_LENGTH_MAX = 128

# What a program may inherit. Everything else may be a key.
INHERITED = (
    "PATH", "LANG", "LANGUAGE", "TZ", "TERM", "COLORTERM", "NO_COLOR", "SHELL", "USER", "LOGNAME", "PYTHONPATH",
    "VIRTUAL_ENV", "NODE_PATH", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "SYSTEMROOT",
)  # fmt: skip
INHERITED_PREFIXES = ("LC_",)


class LocalSecrets:
    """Implements the ``Secrets`` port.

    Args:
        environment: variables; ``secret://github-token`` is ``PERDURE_SECRET_GITHUB_TOKEN``.
        files: TOML files of names and values, which only their owner may read.
        folders: folders with one file for each secret.
        providers: names that stand for other variables, such as ``openai-api-key`` for ``OPENAI_API_KEY``.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        files: Sequence[Path] = (),
        folders: Sequence[Path] = (),
        providers: Mapping[str, str] | None = None,
    ) -> None:
        self._environment = environment
        self._files = files
        self._folders = folders
        self._providers = dict(providers or {})
        self._known: set[str] = set()

    @classmethod
    def default(cls, data: Path) -> LocalSecrets:
        """The environment, ``secrets.toml`` in the data directory and here, container secrets, the keyring."""
        providers = {"openai-api-key": "OPENAI_API_KEY", "anthropic-api-key": "ANTHROPIC_API_KEY"}
        return cls(os.environ, files=(data / FILE, Path(FILE)), folders=(RUN_SECRETS,), providers=providers)

    def __repr__(self) -> str:
        return f"LocalSecrets({len(self._known)} resolved)"

    def resolve(self, reference: str) -> str:
        """The value of ``secret://name``.

        Raises:
            SecretUnknownError: it is no reference, nothing has that name, or a file can be read by others.
        """
        name = reference.removeprefix(SCHEME)
        if not reference.startswith(SCHEME) or not _is_name(name):
            # What was given may be the secret itself, so it is not shown.
            raise SecretUnknownError("expected a reference such as `secret://openai`, found something else; "
                                     "put the value into the environment or a secrets file and refer to it")  # fmt: skip
        value = self._from_environment(name)
        if value is None:
            value = self._from_files(name)
        if value is None:
            value = _from_keyring(name)
        if not value:
            variable = _variable(name)
            message = f'no secret is called `{name}`; set {variable}, or put `{name} = "..."` into `{FILE}` (mode 0600)'
            raise SecretUnknownError(message, secret=name)
        if len(value) >= KNOWN_LENGTH_MIN:
            self._known.add(value)
        return value

    def known_values(self) -> tuple[str, ...]:
        """Every value resolved so far."""
        return tuple(sorted(self._known))

    def _from_environment(self, name: str) -> str | None:
        found = self._environment.get(_variable(name))
        if not found and name in self._providers:
            found = self._environment.get(self._providers[name])
        return found or None

    def _from_files(self, name: str) -> str | None:
        for path in self._files:
            if path.is_file():
                _check_private(path)
                found = _table(path).get(name)
                if isinstance(found, str):
                    return found
        for folder in self._folders:
            path = folder / name
            if path.is_file() and path.stat().st_size <= SECRET_BYTES_MAX:
                return path.read_text(encoding="utf-8").rstrip("\r\n")
        return None


def _table(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        place = str(error).rpartition("(")[2].rstrip(")")  # the text of the error may hold a value
        raise SecretUnknownError(f"`{path}` is no TOML file ({place})") from None
    except OSError as error:
        raise SecretUnknownError(f"`{path}` cannot be read: {error.strerror}") from error


def _check_private(path: Path) -> None:
    """Only its owner, and we or root, may have it."""
    found = path.stat()
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        message = (
            f"`{path}` can be read by others (mode {stat.S_IMODE(found.st_mode):04o}); `chmod 600` it first"
        )
        raise SecretUnknownError(message, path=str(path))
    if hasattr(os, "getuid") and found.st_uid not in (os.getuid(), 0):
        raise SecretUnknownError(f"`{path}` belongs to another user; it must be yours", path=str(path))


def _from_keyring(name: str) -> str | None:
    """From the system's keyring, if the extra is installed and there is one."""
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError:
        return None
    try:
        found: str | None = keyring.get_password(SERVICE, name)
    except KeyringError:
        return None
    return found


def _variable(name: str) -> str:
    return PREFIX + "".join(c if c.isalnum() else "_" for c in name).upper()


def _is_name(name: str) -> bool:
    return (
        0 < len(name) <= NAME_LENGTH_MAX and all(c.isalnum() or c in "-_." for c in name) and ".." not in name
    )


def environment_without(environment: Mapping[str, str], keep: Sequence[str] = ()) -> dict[str, str]:
    """What a child process may inherit: by a list of what is harmless, for nobody can list all names of keys."""
    return {
        name: value
        for name, value in environment.items()
        if name in INHERITED or name in keep or name.startswith(INHERITED_PREFIXES)
    }
