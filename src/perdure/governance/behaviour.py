"""What an agent does for a goal, run by run, as drift looks at it (see ``drift``).

A run is one sample: which verbs it used how often, and a few sums. Verbs count from the ledger, whatever came of the action,
for what an agent *asks* is its behaviour. How long a run took is not among the sums: it says more about load and about the people
that a run waits for than about the agent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from perdure.core.actions import ActionRecord, ActionState
from perdure.core.errors import DefinitionError
from perdure.governance.drift import LIMITS, Baseline, Feature, Limits, Report, Sample, compare, frozen

RUNS_MIN = 50  # of a baseline: rare verbs are missing in less, and the ranks of fewer say little
RUNS_MAX = 1_000  # of a baseline: more do not change it
WINDOW_MIN = 10  # runs: with fewer, chance explains nearly everything
WINDOW_MAX = 200
ACTIONS_MAX = 1_000  # of one run, the newest: an endless run must not fill the memory
BASELINE_ACTIONS_MAX = 50_000  # of all runs of a baseline
MODEL = "model"  # the verb of every model request: which model answers is the operator's choice
VERB = "verb"
NUMBERS = ("actions", "refusals", "tokens", "usd_micros")
NEW_MAX = 10  # new verbs that are named
SAID_MAX = 5  # findings in one reason


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """What one run did.

    Attributes:
        run: its id.
        verbs: how often it used each.
        numbers: by feature: ``actions``, ``refusals``, ``tokens``, ``usd_micros``.
    """

    run: str
    verbs: Mapping[str, int]
    numbers: Mapping[str, float]


class GoalBaseline(msgspec.Struct, frozen=True, kw_only=True):
    """How an agent acts when it has a goal; frozen.

    Attributes:
        agent: its name.
        goal: what its runs were started for.
        at_ms: when it was frozen; only what came later is held against it.
        by: who froze it.
        runs: how many runs it is made of.
        verbs: the actions of these runs by verb.
        sums: the runs by their numbers.
        single: how many verbs only one of the runs used.
    """

    agent: str
    goal: str
    at_ms: int
    by: str
    runs: int
    verbs: Baseline
    sums: Baseline
    single: int

    @property
    def known(self) -> Mapping[str, int]:
        """The verbs that were used for this goal."""
        return self.verbs.names[VERB]

    @property
    def new_verb_percent(self) -> float:
        """In how many of a hundred runs a verb that was never seen comes by chance (Good and Turing's estimate)."""
        return 100 * self.single / self.runs


def verb_of(action: ActionRecord) -> str:
    """What an action is a use of."""
    return MODEL if action.what == "model" else f"tool:{action.name}"


def behaviour_of(run: str, actions: Sequence[ActionRecord]) -> Behaviour:
    """What a run did, by its rows of the ledger; a lost request counts as the one that replaced it."""
    rows = [row for row in actions if row.state is not ActionState.LOST]
    verbs: dict[str, int] = {}
    for row in rows:
        verbs[verb_of(row)] = verbs.get(verb_of(row), 0) + 1
    sums = {
        "actions": len(rows),
        "refusals": sum(row.state is ActionState.REFUSED for row in rows),
        "tokens": sum(row.spent.tokens for row in actions),
        "usd_micros": sum(row.spent.usd_micros for row in actions),
    }
    return Behaviour(run=run, verbs=verbs, numbers=sums)


def freeze(agent: str, goal: str, runs: Sequence[Behaviour], *, by: str, at_ms: int) -> GoalBaseline:
    """The baseline that these runs make.

    Raises:
        DefinitionError: they are too few, or use too many different verbs.
    """
    if len(runs) < RUNS_MIN:
        raise DefinitionError(
            f"agent `{agent}` has {len(runs)} ended runs for the goal `{goal}`, a baseline needs at least {RUNS_MIN}",
            agent=agent, goal=goal,
        )  # fmt: skip
    actions = _actions(runs)
    limits = Limits(
        baseline_min=1
    )  # few actions are no reason: an agent that acts seldom has a baseline, too
    empty = Baseline(agent=agent, goal=goal, samples=0, names={VERB: {}}, numbers={})
    verbs = frozen(agent, goal, actions, limits=limits) if actions else empty
    seen = [verb for run in runs for verb in run.verbs]
    return GoalBaseline(
        agent=agent, goal=goal, at_ms=at_ms, by=by, runs=len(runs), verbs=verbs,
        sums=frozen(agent, goal, [Sample(numbers=run.numbers) for run in runs], limits=limits),
        single=sum(seen.count(verb) == 1 for verb in verbs.names[VERB]),
    )  # fmt: skip


def check(
    baseline: GoalBaseline | None,
    window: Sequence[Behaviour],
    *,
    used: Mapping[str, int] | None = None,
    alpha: float = LIMITS.alpha,
) -> Report:
    """Hold newer runs against a baseline.

    Args:
        baseline: that of the agent and the goal; ``None`` if there is none.
        window: runs that are not in it and have ended.
        used: more verbs that were used for the goal, in whatever runs: only whether they are new matters.
        alpha: how often all tests together may be wrong by chance; a new verb is no test (see ``new_verb_percent``).

    Returns:
        A new verb is drift from the first run on; everything else needs ``WINDOW_MIN`` runs.
    """
    if baseline is None:
        return compare(None, ())
    features = [_novelty(baseline, window, used or {})]
    enough = len(window) >= WINDOW_MIN
    if enough:
        tests = 1 + len(NUMBERS)
        limits = Limits(baseline_min=RUNS_MIN, window_min=WINDOW_MIN, alpha=alpha / tests)
        verbs = compare(baseline.verbs, _actions(window), limits=limits)
        features += [feature for feature in verbs.features if feature.test == "divergence"]
        limits = msgspec.structs.replace(limits, alpha=alpha * len(NUMBERS) / tests)
        features += compare(
            baseline.sums, [Sample(numbers=run.numbers) for run in window], limits=limits
        ).features
    if any(feature.is_drift for feature in features):
        return Report(found="drift", features=tuple(features))
    if not enough:
        why = f"{len(window)} runs have ended since the baseline was frozen, {WINDOW_MIN} are needed"
        return Report(found="unknown", why=why, features=tuple(features))
    return Report(found="none", features=tuple(features))


def reasons(report: Report) -> str:
    """What was found, for a person."""
    found = [said(feature) for feature in report.features if feature.is_drift]
    more = [f"and {len(found) - SAID_MAX} more"] if len(found) > SAID_MAX else []
    return "; ".join([*found[:SAID_MAX], *more])


def said(feature: Feature) -> str:
    """What one test says."""
    match feature.test:
        case "novelty" if feature.new:
            return f"never used for this goal before: {', '.join(f'`{name}`' for name in feature.new)}"
        case "novelty":
            return "no new verb"
        case "divergence":
            return f"the verbs diverge by {feature.value:.2f} bits (limit {feature.limit:.2f})"
        case _:
            than = "more" if feature.value > 0 else "fewer"
            how = "as before" if not feature.is_drift else f"{than} than before"
            return f"`{feature.feature}` {how} (rank correlation {feature.value:+.2f}, limit {feature.limit:.2f})"


def _novelty(baseline: GoalBaseline, window: Sequence[Behaviour], used: Mapping[str, int]) -> Feature:
    uses: dict[str, int] = {}
    for run in window:
        for verb, count in run.verbs.items():
            uses[verb] = uses.get(verb, 0) + count
    for verb, count in used.items():  # the same actions again, perhaps, so the larger number counts
        uses[verb] = max(count, uses.get(verb, 0))
    new = sorted(uses.keys() - baseline.known.keys())
    return Feature(
        feature=VERB, test="novelty", value=sum(uses[verb] for verb in new), limit=LIMITS.novel_min,
        is_drift=bool(new), new=tuple(new[:NEW_MAX]),
    )  # fmt: skip


def _actions(runs: Sequence[Behaviour]) -> list[Sample]:
    return [
        Sample(names={VERB: verb}, group=run.run)
        for run in runs
        for verb, count in sorted(run.verbs.items())
        for _ in range(count)
    ]
