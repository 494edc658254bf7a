"""What a runtime is governed by, from its configuration: policies, and what is asked beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from perdure.core.errors import DefinitionError
from perdure.core.principals import RISKS, Risk
from perdure.gateway.catalogue import Catalogue
from perdure.gateway.gates.authority import AuthorityGate
from perdure.gateway.gates.case import Gate
from perdure.gateway.gates.conduct import ConductGate
from perdure.gateway.gates.flow import FlowGate
from perdure.gateway.gates.hold import ConfidenceGate
from perdure.gateway.governance import Governance
from perdure.gateway.memory import RunMemory
from perdure.governance.behaviour import WINDOW_MAX, WINDOW_MIN
from perdure.governance.conduct_errors import ConductInvalidError
from perdure.governance.conduct_rules import Rules as ConductRules
from perdure.governance.flow import FlowRules, complete, read_rules
from perdure.ports import Secrets, Store
from perdure.runtime.policies import FolderPolicies, specs_of
from perdure.runtime.system import SystemClock
from perdure.runtime.witnessing import WitnessRule, checked_witnesses

if TYPE_CHECKING:
    from perdure.gateway.judge import WebhookJudge

PERCENT = range(1, 101)
EVERY_S_MIN, EVERY_S_MAX = 0.05, 86_400.0  # of looking for drift: not in a busy loop, and at least once a day


class JudgeRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An external judge that is asked before a tool runs.

    Attributes:
        url: its address; ``https``, or ``http`` on this machine.
        secret: a reference to the secret that requests are signed with, such as ``secret://judge``.
        deadlines_ms: how long it may take, by the risk of the agent; what is left out has its default.
    """

    url: str
    secret: str
    deadlines_ms: dict[Risk, int] = {}


class DriftRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens by itself when an agent does not act any more as it did.

    Attributes:
        contain: the level of the containment of such an agent.
        every_s: how often newer actions are held against the baselines.
        window: how many runs of a goal must have ended since the last comparison for the next one; new verbs are looked for
            each time.
    """

    contain: Literal["watch", "restrict"]
    every_s: Annotated[float, msgspec.Meta(ge=EVERY_S_MIN, le=EVERY_S_MAX)] = 60
    window: Annotated[int, msgspec.Meta(ge=WINDOW_MIN, le=WINDOW_MAX)] = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What actions are judged by.

    Attributes:
        policies: a folder with ``*.cedar`` files; without it agents may do what their charter says.
        flow: a TOML file with what is declared of the flow of information; also without it flow is judged as soon as a tool
            declares something in its code.
        conduct: a TOML file with rules over the sequence of a run's actions.
        confidence_min: actions with a lower confidence (in percent) are held; one number, or one for each risk.
        drift: what happens by itself when an agent drifts; without it drift is only looked for when somebody asks.
        judge: an external judge, asked after those.
        gates: checks of your own, asked before the judge.
        witnesses: who cosigns the audit log in which all of that is recorded.
    """

    policies: Path | None = None
    flow: Path | None = None
    conduct: Path | None = None
    confidence_min: int | Mapping[Risk, int] | None = None
    drift: DriftRule | None = None
    judge: JudgeRule | None = None
    gates: Sequence[Gate] = ()
    witnesses: Sequence[WitnessRule] = ()

    def __post_init__(self) -> None:
        least = self.confidence_by_risk
        if least is not None and (set(least) != set(RISKS) or not set(least.values()) <= set(PERCENT)):
            raise DefinitionError(
                f"`confidence_min` is {self.confidence_min}, expected a percentage from 1 to 100, or one for each of "
                f"{', '.join(RISKS)}"
            )
        checked_witnesses(self.witnesses)

    @property
    def confidence_by_risk(self) -> Mapping[Risk, int] | None:
        """``confidence_min`` of each tier."""
        if self.confidence_min is None or isinstance(self.confidence_min, Mapping):
            return self.confidence_min
        return dict.fromkeys(RISKS, self.confidence_min)


class Rulebook:
    """Gives a gateway its gates, once its tools are known.

    Args:
        rules: what actions are judged by.
        store: where changes of the policies are recorded.
    """

    def __init__(self, rules: Rules, store: Store) -> None:
        self._rules = rules
        self._store = store
        self._judge: WebhookJudge | None = None

    async def govern(
        self, governance: Governance, catalogues: Mapping[str, Catalogue], secrets: Secrets
    ) -> None:
        """Put the gates in their order.

        Raises:
            DefinitionError: the flow or conduct rules or the judge's address cannot be used.
            ToolUnreachableError: a toolset does not answer, so rules cannot be held against its tools.
        """
        gates: list[Gate] = []
        if self._rules.policies is not None:
            policies = FolderPolicies(
                self._rules.policies, lambda: specs_of(catalogues), self._store, SystemClock().now_ms
            )
            gates.append(AuthorityGate(policies))
        flow = await read_flow(self._rules.flow, catalogues)
        if flow is not None:
            gates.append(FlowGate())
        conduct = None
        if self._rules.conduct is not None:
            conduct = await read_conduct(self._rules.conduct, catalogues)
            gates.append(ConductGate())
        if flow is not None or conduct is not None:
            governance.memory = lambda: RunMemory(conduct, flow)
        gates += self._rules.gates
        if self._rules.judge is not None:
            self._judge = _judge(self._rules.judge, secrets)
            gates.append(self._judge)
        if (least := self._rules.confidence_by_risk) is not None:
            gates.append(ConfidenceGate(least))
        governance.go_by(gates)

    async def close(self) -> None:
        """Let go of the judge."""
        if self._judge is not None:
            await self._judge.close()


def _judge(rule: JudgeRule, secrets: Secrets) -> WebhookJudge:
    from perdure.gateway.judge import DEADLINES_MS, WebhookJudge
    from perdure.hosting.webhook import HttpJudge

    return WebhookJudge(
        HttpJudge(rule.url),
        secrets=secrets,
        secret=rule.secret,
        clock=SystemClock(),
        deadlines_ms={**DEADLINES_MS, **rule.deadlines_ms},
    )


async def read_flow(path: Path | None, catalogues: Mapping[str, Catalogue]) -> FlowRules | None:
    """What is declared of the flow of information, in a file and in the code of tools; ``None`` if nothing is.

    Raises:
        DefinitionError: it cannot be read, names a tool or agent that is not there, or two tools of one name declare different things.
        ToolUnreachableError: a toolset does not answer.
    """
    if path is None:
        specs = [spec for catalogue in catalogues.values() for spec in catalogue.own]
        rules = FlowRules()
    else:
        specs = await specs_of(catalogues)
        try:
            rules = read_rules(path.read_text(encoding="utf-8"))  # noqa: ASYNC240 - once, before anything runs
        except (OSError, UnicodeDecodeError) as error:
            raise DefinitionError(f"the flow rules `{path}` cannot be read: {error}") from error
    declared = {spec.name: spec.flow for spec in specs}
    for spec in specs:
        if declared[spec.name] != spec.flow:
            raise DefinitionError(
                f"two tools are called `{spec.name}` and declare different flows; rename one"
            )
    if path is None and not any(declared.values()):
        return None
    return complete(rules, declared, catalogues)


async def read_conduct(path: Path, catalogues: Mapping[str, Catalogue]) -> ConductRules:
    """The conduct rules of a file, held against every tool that an agent may have.

    Raises:
        ConductInvalidError: they cannot be read, or name a tool that is not there.
        ToolUnreachableError: a toolset does not answer.
    """
    try:
        text = path.read_text(encoding="utf-8")  # noqa: ASYNC240 - once, before anything runs
    except (OSError, UnicodeDecodeError) as error:
        raise ConductInvalidError(f"the conduct rules `{path}` cannot be read: {error}") from error
    return ConductRules.load(text, {spec.name for spec in await specs_of(catalogues)})
