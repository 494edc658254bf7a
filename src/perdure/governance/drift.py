"""Goal-conditioned drift, after MI9 (arXiv 2508.03858): does an agent still act as it did when it had this goal before?

A baseline is frozen for each agent and goal. A window of newer actions is held against it in three ways: Jensen-Shannon
divergence for names (tools, verbs), the Mann-Whitney U test for sizes and gaps, and the rule that something never seen for this
goal is drift. How far names may diverge depends on how many there are: by chance alone, small windows diverge more than
large ones; and on how alike the actions of one group (a run) are: ten actions of one run tell less than ten runs with one
each. A goal with too few samples, or without a baseline, is *unknown*, which is not the same as *no drift*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import erfc, log, log2, sqrt
from statistics import NormalDist
from typing import Literal

import msgspec

from perdure.core.errors import DefinitionError

VALUES_MAX = 1_000  # numbers of one feature that a baseline keeps: evenly taken from all, in order of size
NAMES_MAX = 1_000  # different names of one feature in a baseline
Found = Literal["none", "drift", "unknown"]
_APPROXIMATE = 1e-12  # a rank sum is a sum of halves; this is rounding


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One action as drift looks at it: by feature, a name or a number.

    Attributes:
        names: such as ``{"tool": "refund", "verb": "write"}``.
        numbers: such as ``{"arguments_bytes": 120, "gap_ms": 900}``.
        group: what it belongs to, such as its run; empty if it stands for itself.
    """

    names: Mapping[str, str] = {}
    numbers: Mapping[str, float] = {}
    group: str = ""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """When something is drift.

    Attributes:
        baseline_min: samples that a baseline needs.
        window_min: samples that a window needs, for everything but the rule about new names.
        alpha: how often all tests of one comparison together may be wrong by chance, about.
        divergence_min: bits; a smaller divergence is no drift, however sure it is.
        effect_min: of Mann-Whitney, the rank-biserial correlation below which a difference is no drift.
        novel_min: how many uses of names that were never seen for this goal are drift.
    """

    baseline_min: int = 100
    window_min: int = 10
    alpha: float = 0.01
    divergence_min: float = 0.05
    effect_min: float = 0.3
    novel_min: int = 1


LIMITS = Limits()


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """How an agent acts when it has a goal; it does not change any more.

    Attributes:
        agent: its name.
        goal: the goal, as the runs name it.
        samples: how many actions it is made of.
        names: by feature, how often each name was there.
        numbers: by feature, in order of size.
        spread: by feature with names, how many times more they vary because of their groups than if each stood for itself.
    """

    agent: str
    goal: str
    samples: int
    names: Mapping[str, Mapping[str, int]]
    numbers: Mapping[str, tuple[float, ...]]
    spread: Mapping[str, float] = {}


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """What one test found.

    Attributes:
        feature: which one.
        test: ``divergence``, ``rank`` or ``novelty``.
        value: the divergence in bits, the rank-biserial correlation (-1 to 1: above 0, the window has larger numbers), or the
            number of uses of new names.
        limit: from which value on (either way) it is drift.
        is_drift: whether it is.
        new: of ``novelty``, the new names, sorted; at most 10.
    """

    feature: str
    test: Literal["divergence", "rank", "novelty"]
    value: float
    limit: float
    is_drift: bool
    new: tuple[str, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison found.

    Attributes:
        found: ``drift`` if one test says so, ``unknown`` if it cannot be said, ``none``.
        why: for ``unknown``, what is missing.
        features: every test that was made.
    """

    found: Found
    why: str = ""
    features: tuple[Feature, ...] = ()


class Ranks(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a Mann-Whitney U test.

    Attributes:
        u: of the first sample: in how many pairs its number is larger; equal ones count half.
        p: two-sided, by normal approximation with corrections for ties and continuity.
        effect: rank-biserial correlation, -1 to 1; above 0 the first sample has the larger numbers.
    """

    u: float
    p: float
    effect: float


def frozen(agent: str, goal: str, samples: Sequence[Sample], *, limits: Limits = LIMITS) -> Baseline:
    """The baseline that these samples make.

    Raises:
        DefinitionError: they are too few, have different features, or too many different names.
    """
    if len(samples) < limits.baseline_min:
        raise DefinitionError(
            f"a baseline of {len(samples)} samples is too small; expected at least {limits.baseline_min}",
            agent=agent, goal=goal,
        )  # fmt: skip
    first = samples[0]
    if any(
        one.names.keys() != first.names.keys() or one.numbers.keys() != first.numbers.keys()
        for one in samples
    ):
        raise DefinitionError("the samples of a baseline have different features", agent=agent, goal=goal)
    names = {feature: counted([one.names[feature] for one in samples]) for feature in sorted(first.names)}
    for feature, counts in names.items():
        if len(counts) > NAMES_MAX:
            raise DefinitionError(
                f"`{feature}` has {len(counts)} different names; expected at most {NAMES_MAX}",
                agent=agent, goal=goal,
            )  # fmt: skip
    numbers = {
        feature: _thinned(sorted(float(one.numbers[feature]) for one in samples))
        for feature in sorted(first.numbers)
    }
    spread = {feature: spread_of(feature, samples) for feature in names}
    return Baseline(agent=agent, goal=goal, samples=len(samples), names=names, numbers=numbers, spread=spread)


def compare(baseline: Baseline | None, window: Sequence[Sample], *, limits: Limits = LIMITS) -> Report:
    """Hold newer actions of an agent with this goal against its baseline.

    Args:
        baseline: that of the agent and the goal; ``None`` if there is none.
        window: the newest actions; 10 to 50 are enough.
        limits: when something is drift.

    Returns:
        A new name is drift from the first sample on; the other tests need ``window_min`` samples. A feature that the window
        lacks, or has but the baseline lacks, makes an answer without drift ``unknown``.
    """
    if baseline is None:
        return Report(found="unknown", why="this agent has no baseline for this goal")
    features = [_novelty(name, counts, window, limits) for name, counts in baseline.names.items()]
    why = _missing(baseline, window, limits)
    if not why:
        tests = len(baseline.names) + len(baseline.numbers)
        alpha = limits.alpha / max(
            tests, 1
        )  # Bonferroni: they are wrong together no more often than one alone
        features += [_divergence(name, baseline, window, alpha, limits) for name in baseline.names]
        features += [_rank(name, kept, window, alpha, limits) for name, kept in baseline.numbers.items()]
    if any(feature.is_drift for feature in features):
        return Report(found="drift", features=tuple(features))
    return Report(found="unknown" if why else "none", why=why, features=tuple(features))


def divergence(first: Mapping[str, int], second: Mapping[str, int]) -> float:
    """The Jensen-Shannon divergence of two counts, in bits: 0 for equal shares, 1 for nothing in common.

    Raises:
        DefinitionError: one of them is empty.
    """
    total, other = sum(first.values()), sum(second.values())
    if not total or not other:
        raise DefinitionError("a divergence needs something on both sides")
    found = 0.0
    for name in sorted(first.keys() | second.keys()):
        p, q = first.get(name, 0) / total, second.get(name, 0) / other
        middle = (p + q) / 2
        found += (p * log2(p / middle) if p else 0.0) / 2 + (q * log2(q / middle) if q else 0.0) / 2
    return min(max(found, 0.0), 1.0)


def mann_whitney(first: Sequence[float], second: Sequence[float]) -> Ranks:
    """Whether the numbers of one sample tend to be larger than those of the other.

    Raises:
        DefinitionError: one of them is empty.
    """
    size, other = len(first), len(second)
    if not size or not other:
        raise DefinitionError("a Mann-Whitney test needs numbers on both sides")
    marked = sorted([(value, 0) for value in first] + [(value, 1) for value in second])
    rank_sum, ties, place = 0.0, 0, 0
    while place < len(marked):
        end = place
        while end < len(marked) and marked[end][0] == marked[place][0]:
            end += 1
        equal = end - place
        rank_sum += (place + 1 + end) / 2 * sum(1 for _, side in marked[place:end] if side == 0)
        ties += equal**3 - equal
        place = end
    u = rank_sum - size * (size + 1) / 2
    count = size + other
    variance = size * other / 12 * (count + 1 - ties / (count * (count - 1)))
    effect = 2 * u / (size * other) - 1
    if variance <= _APPROXIMATE:  # all numbers are equal
        return Ranks(u=u, p=1.0, effect=0.0)
    z = max(abs(u - size * other / 2) - 0.5, 0.0) / sqrt(variance)
    return Ranks(u=u, p=min(erfc(z / sqrt(2)), 1.0), effect=effect)


def counted(names: Sequence[str]) -> dict[str, int]:
    """How often each name is there, by name."""
    found: dict[str, int] = {}
    for name in sorted(names):
        found[name] = found.get(name, 0) + 1
    return found


def spread_of(feature: str, samples: Sequence[Sample]) -> float:
    """How many times more the shares of names vary than chance alone explains, because groups are alike in themselves.

    The first-order correction of Rao and Scott for samples in clusters, from the variance between the groups; never less than 1.
    """
    groups: dict[str, dict[str, int]] = {}
    for place, one in enumerate(samples):
        mine = groups.setdefault(one.group or f"\0{place}", {})
        mine[one.names[feature]] = mine.get(one.names[feature], 0) + 1
    total = counted([one.names[feature] for one in samples])
    if len(total) < 2 or len(groups) < 2 or len(groups) == len(samples):
        return 1.0
    found = 0.0
    for name, count in total.items():
        share = count / len(samples)
        between = sum((mine.get(name, 0) - share * sum(mine.values())) ** 2 for mine in groups.values())
        found += between / share
    return max(1.0, found * len(groups) / (len(groups) - 1) / len(samples) / (len(total) - 1))


def divergence_limit(first: int, second: int, kinds: int, alpha: float) -> float:
    """How far two samples of one and the same source diverge by chance alone, in bits, with probability ``alpha`` or less.

    For small differences the divergence times ``8 ln 2`` is the chi-square distance, so that ``8 ln 2 * JSD * n * m / (n + m)``
    has about the chi-square distribution with ``kinds - 1`` degrees of freedom (its quantile by Wilson and Hilferty).
    """
    freedom = max(kinds - 1, 1)
    z = NormalDist().inv_cdf(1 - alpha)
    share = 2 / (9 * freedom)
    critical = freedom * (1 - share + z * sqrt(share)) ** 3
    return float(critical * (first + second) / (first * second) / (8 * log(2)))


def _missing(baseline: Baseline, window: Sequence[Sample], limits: Limits) -> str:
    if baseline.samples < limits.baseline_min:
        return f"the baseline has {baseline.samples} samples, needs {limits.baseline_min}"
    if len(window) < limits.window_min:
        return f"the window has {len(window)} samples, needs {limits.window_min}"
    for one in window:
        if one.names.keys() != baseline.names.keys() or one.numbers.keys() != baseline.numbers.keys():
            return "the window has other features than the baseline"
    return ""


def _novelty(name: str, counts: Mapping[str, int], window: Sequence[Sample], limits: Limits) -> Feature:
    new = [one.names[name] for one in window if name in one.names and one.names[name] not in counts]
    return Feature(
        feature=name, test="novelty", value=len(new), limit=limits.novel_min,
        is_drift=len(new) >= limits.novel_min, new=tuple(sorted(set(new))[:10]),
    )  # fmt: skip


def _divergence(
    name: str, baseline: Baseline, window: Sequence[Sample], alpha: float, limits: Limits
) -> Feature:
    counts, mine = baseline.names[name], counted([one.names[name] for one in window])
    kinds = len(counts.keys() | mine.keys())
    value = divergence(mine, counts)
    chance = divergence_limit(len(window), sum(counts.values()), kinds, alpha) * baseline.spread.get(name, 1)
    limit = max(chance, limits.divergence_min)
    return Feature(feature=name, test="divergence", value=value, limit=limit, is_drift=value >= limit)


def _rank(
    name: str, kept: Sequence[float], window: Sequence[Sample], alpha: float, limits: Limits
) -> Feature:
    found = mann_whitney([float(one.numbers[name]) for one in window], kept)
    is_drift = found.p <= alpha and abs(found.effect) >= limits.effect_min
    return Feature(feature=name, test="rank", value=found.effect, limit=limits.effect_min, is_drift=is_drift)


def _thinned(values: Sequence[float]) -> tuple[float, ...]:
    if len(values) <= VALUES_MAX:
        return tuple(values)
    step = (len(values) - 1) / (VALUES_MAX - 1)
    return tuple(values[round(place * step)] for place in range(VALUES_MAX))
