"""Which walls a configuration gives, and that it gives no weaker one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from perdure.core.errors import DefinitionError, SandboxUnavailableError
from perdure.core.sandbox import SandboxJob
from perdure.ports import Sandboxes
from perdure.runtime.config import world_from
from perdure.runtime.examining import examine
from perdure.runtime.secrets import LocalSecrets
from perdure.runtime.wall_makers import makers
from perdure.runtime.walls import ConfiguredWalls, SandboxRules
from perdure.sandboxes.hints import why_not
from perdure.sandboxes.unwalled import UnwalledSandboxes
from perdure.testing.conformance.sandboxes import CASES, LIMITS


def rules(folder: Path, text: str) -> SandboxRules:
    (folder / "perdure.toml").write_text(text)
    return world_from(folder / "perdure.toml", {}, LocalSecrets.default(folder)).sandboxes


class Named(UnwalledSandboxes):
    """Counts how often it was opened and closed."""

    def __init__(self, tier: str) -> None:
        super().__init__()
        self.tier = tier  # type: ignore[assignment]
        self.opened = self.closed = 0

    async def open(self) -> None:
        self.opened += 1

    async def close(self) -> None:
        self.closed += 1


async def test_the_usual_one_or_the_weakest_that_is_strong_enough() -> None:
    made = {tier: Named(tier) for tier in ("namespace", "gvisor", "microvm")}
    walls = ConfiguredWalls(
        SandboxRules(tiers=("namespace", "microvm", "gvisor")),
        {tier: (lambda _l, _o, it=it: it) for tier, it in made.items()},
    )
    for asked, tier in (
        ("", "namespace"),
        ("process", "namespace"),
        ("gvisor", "gvisor"),
        ("microvm", "microvm"),
    ):
        assert (await walls.at_least(asked)).tier == tier
    assert [each.opened for each in made.values()] == [1, 1, 1], (
        "opened once, however often they are asked for"
    )
    with pytest.raises(SandboxUnavailableError, match="remote"):
        await walls.at_least("remote")
    with pytest.raises(SandboxUnavailableError):
        await walls.at_least("nonsense")
    await walls.close()
    assert [each.closed for each in made.values()] == [1, 1, 1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sandbox]\ntiers = []", "at least one"),
        ('[sandbox]\ntiers = ["namespace", "namespace"]', "once"),
        ('[sandbox]\ntiers = ["cardboard"]', "cardboard"),
        ("[sandbox]\nwalls = 1", "walls"),
        ('[sandbox]\nprograms = "none"', "none"),
        ("[sandbox.limits]\nmemory_bytes = -1", "memory_bytes"),
        ("[sandbox.limits]\nmemory = 1", "memory"),
        ("[sandbox.options.cardboard]\nspare = 1", "cardboard"),
        ('[[sandbox.egress.a.allow]]\nhost = "*"', r"\*"),
        ('[[sandbox.egress.a.allow]]\nhosts = "a.example"', "hosts"),
    ],
)
def test_configurations_that_cannot_work(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        rules(tmp_path, text)


async def test_options_that_nobody_knows_are_an_error(tmp_path: Path) -> None:
    walls = ConfiguredWalls(rules(tmp_path, "[sandbox.options.namespace]\nspares = 1"))
    with pytest.raises(DefinitionError, match="spares"):
        await walls.at_least()


@pytest.mark.parametrize(
    ("tier", "options", "error"),
    [
        ("microvm", {"monitor": "bochs"}, DefinitionError),
        ("remote", {}, SandboxUnavailableError),
        ("remote", {"service": "cloud"}, SandboxUnavailableError),
        ("namespace", {"hosts": ["a@127.0.0.1:1"]}, DefinitionError),
    ],
)
def test_options_that_cannot_be_used(tier: str, options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        makers()[tier](SandboxRules().limits, options)


async def test_firecracker_says_what_is_missing(tmp_path: Path) -> None:
    options = {"microvm": {"monitor": "firecracker", "program": str(tmp_path / "none")}}
    walls = ConfiguredWalls(SandboxRules(tiers=("microvm",), options=options))
    with pytest.raises(SandboxUnavailableError, match="firecracker"):
        await walls.at_least()


async def test_the_doctor_tells_the_truth() -> None:
    found = {each.tier: each for each in await examine(SandboxRules())}
    assert set(found) == {"namespace", "gvisor", "microvm", "remote", "none"}
    assert found["none"].is_available and "without a wall" in found["none"].why
    assert not found["remote"].is_available and "no service is configured" in found["remote"].why
    for each in found.values():
        assert each.is_available or each.why, f"{each.tier} says why it cannot be had"


def test_why_there_are_no_namespaces(tmp_path: Path) -> None:
    for name, value, said in (
        ("user/max_user_namespaces", "0\n", "max_user_namespaces"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1\n", "AppArmor"),
    ):
        place = tmp_path / name.replace("/", "-") / name
        place.parent.mkdir(parents=True)
        place.write_text(value)
        assert said in why_not("Operation not permitted", sysctls=place.parents[1], containers=())
    (tmp_path / "container").touch()
    assert "seccomp=unconfined" in why_not(
        "Permission denied", sysctls=tmp_path, containers=(str(tmp_path / "container"),)
    )
    assert why_not("Permission denied", sysctls=tmp_path, containers=()) == "Permission denied"
    assert (
        why_not("it was killed", sysctls=tmp_path, containers=(str(tmp_path / "container"),))
        == "it was killed"
    )


async def test_without_a_wall_code_still_has_its_limits() -> None:
    sandboxes = UnwalledSandboxes()
    found = await sandboxes.run(SandboxJob(code="print(6 * 7)"))
    assert (found.stdout, found.tier, found.ending) == (b"42\n", "none", "ended")
    with pytest.raises(SandboxUnavailableError):
        await sandboxes.run(SandboxJob(code="1"), doors={8080: lambda _r, _w: None})  # type: ignore[dict-item, arg-type, return-value]


# What needs a wall, or somebody on the other side of one who counts.
NEEDS_A_WALL = {"has_no_network", "starts_from_a_clean_slate", "stops_what_goes_beyond_a_limit"}


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.__name__ not in NEEDS_A_WALL], ids=lambda case: case.__name__
)
async def test_conformance_without_a_wall(case: Callable[[Sandboxes], Awaitable[None]]) -> None:
    await case(UnwalledSandboxes(LIMITS))
