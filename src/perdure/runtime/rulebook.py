"""What a runtime is governed by, from its configuration: policies, and what is asked beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perdure.core.errors import DefinitionError
from perdure.gateway.catalogue import Catalogue
from perdure.gateway.gates.authority import AuthorityGate
from perdure.gateway.gates.case import Gate
from perdure.gateway.gates.conduct import ConductGate
from perdure.gateway.gates.hold import ConfidenceGate
from perdure.gateway.governance import Governance
from perdure.gateway.memory import RunMemory
from perdure.governance.conduct import Conduct
from perdure.governance.conduct_rules import ConductInvalidError, Rule, load_rules
from perdure.ports import Store
from perdure.runtime.policies import FolderPolicies, specs_of
from perdure.runtime.system import SystemClock

PERCENT = range(1, 101)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What actions are judged by.

    Attributes:
        policies: a folder with ``*.cedar`` files; without it agents may do what their charter says.
        conduct: a TOML file with rules over the sequence of a run's actions.
        confidence_min: actions with a lower confidence (in percent) are held.
        gates: checks of your own, asked after those.
    """

    policies: Path | None = None
    conduct: Path | None = None
    confidence_min: int | None = None
    gates: Sequence[Gate] = ()

    def __post_init__(self) -> None:
        if self.confidence_min is not None and self.confidence_min not in PERCENT:
            raise DefinitionError(
                f"`confidence_min` is {self.confidence_min}, expected a percentage from 1 to 100"
            )


class Rulebook:
    """Gives a gateway its gates, once its tools are known.

    Args:
        rules: what actions are judged by.
        store: where changes of the policies are recorded.
    """

    def __init__(self, rules: Rules, store: Store) -> None:
        self._rules = rules
        self._store = store

    def govern(self, governance: Governance, catalogues: Mapping[str, Catalogue]) -> None:
        """Put the gates in their order."""
        gates: list[Gate] = []
        if self._rules.policies is not None:
            policies = FolderPolicies(
                self._rules.policies, lambda: specs_of(catalogues), self._store, SystemClock().now_ms
            )
            gates.append(AuthorityGate(policies))
        if self._rules.conduct is not None:
            rules = read_conduct(self._rules.conduct)
            gates.append(ConductGate(rules, lambda: _names(catalogues)))
            governance.memory = lambda: RunMemory(Conduct(rules))
        gates += self._rules.gates
        if self._rules.confidence_min is not None:
            gates.append(ConfidenceGate(self._rules.confidence_min))
        governance.go_by(gates)


def read_conduct(path: Path) -> tuple[Rule, ...]:
    """The conduct rules of a file.

    Raises:
        ConductInvalidError: they cannot be read.
    """
    try:
        return load_rules(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConductInvalidError(f"the conduct rules `{path}` cannot be read: {error}") from error


async def _names(catalogues: Mapping[str, Catalogue]) -> set[str]:
    return {spec.name for spec in await specs_of(catalogues)}
