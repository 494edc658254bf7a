"""Measure of sequence rules: what judging an action and taking it in costs, after short and long histories.

python -m bench.conduct

Two sets of 20 rules of all kinds, half of them with pins. In ``mixed`` they are about six tools, as such files are; in
``all`` each of them is about every action. Time is that of one event: judged, then taken in.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import msgspec

from perdure.governance.conduct import advance, judge
from perdure.governance.conduct_patterns import Event
from perdure.governance.conduct_rules import Rules
from perdure.governance.conduct_state import State

HISTORIES = (10, 1_000, 100_000)
MEASURED = 2_000
ROUNDS = 5
TOOLS = ("look", "read", "pay", "send", "book", "close")
EFFECTS: dict[str, Any] = {"look": "read", "read": "read", "close": "reversible"}
KINDS = (
    'kind = "after"\nfirst = {a}\naction = {b}\nunless = {c}\nwithin = "1h"',
    'kind = "require"\naction = {b}\nneeds = {a}\nwithin = "1h"',
    'kind = "count"\naction = {b}\nmax = 100\nwithin = "1h"',
    'kind = "sum"\naction = {b}\nof = "cents"\nmax = 100000000\nwithin = "10m"',
    'kind = "distinct"\naction = {b}\nof = "to"\nmax = 50\nwithin = "200 actions"',
    'kind = "absence"\nfirst = {a}\nfollowed_by = {c}\nwithin = "1h"',
    'kind = "count"\naction = {b}\nmax = 100000000',
)


def rules(*, about_all: bool) -> Rules:
    """20 rules."""
    made = []
    for number in range(20):
        names = [f'"{TOOLS[(number + place) % len(TOOLS)]}"' for place in range(3)]
        if about_all:
            names = ['"*"'] * 3
        text = KINDS[number % len(KINDS)].format(a=names[0], b=names[1], c=names[2])
        pin = '\nper = "order"' if number % 2 else ""
        made.append(f'[[rule]]\nid = "r{number}"\nthen = "watch"\nreason = "x"\n{text}{pin}\n')
    return Rules.load("".join(made), TOOLS)


def event(number: int, state: Any) -> Event:
    """One of a busy run: an action each second, about 100 orders."""
    tool = TOOLS[number % len(TOOLS)]
    arguments = {"order": number % 100, "cents": number % 500, "to": f"x{number % 40}@shop.example"}
    return Event(
        tool=tool,
        effect=EFFECTS.get(tool, "irreversible"),
        state=state,
        at_ms=number * 1_000,
        arguments=arguments,
    )


def measure() -> dict[str, Any]:
    """Microseconds of one event at each length of history, and of the longest divided by the shortest.

    The figure is the median over rounds of the mean over events; ``us_of_an_action`` is that of the three events of
    one action (requested, intended, succeeded), of which only the first is judged.
    """
    found: dict[str, Any] = {}
    for name, about_all in (("mixed", False), ("all", True)):
        loaded = rules(about_all=about_all)
        rows = {str(length): _row(loaded, length) for length in HISTORIES}
        first, last = rows[str(HISTORIES[0])], rows[str(HISTORIES[-1])]
        found[name] = {
            "histories": rows,
            "ratio": round(last["us_of_an_event"] / first["us_of_an_event"], 2),
        }
    return found


def _row(loaded: Rules, length: int) -> dict[str, Any]:
    events, actions = [], []
    for _ in range(ROUNDS):
        state = State.fresh(loaded)
        for number in range(length):
            for become in ("requested", "intended", "succeeded"):
                advance(loaded, state, event(number, become))
        size = len(msgspec.json.encode(state.to_data(loaded)))
        # with a short history, a few events at a time: otherwise it would be a long one by the end
        batch = min(max(length, 10), MEASURED)
        kept = state.to_data(loaded)
        spent_one, spent_three, count = 0.0, 0.0, 0
        while count < MEASURED:
            state = State.from_data(loaded, kept)
            made = [event(length + number, "requested") for number in range(batch)]
            began = time.perf_counter()
            for one in made:
                judge(loaded, state, one)
                advance(loaded, state, one)
            spent_one += time.perf_counter() - began
            state = State.from_data(loaded, kept)
            three = [
                (event(length + number, "requested"), event(length + number, "intended"), event(length + number, "succeeded"))
                for number in range(batch)
            ]  # fmt: skip
            began = time.perf_counter()
            for requested, intended, succeeded in three:
                judge(loaded, state, requested)
                advance(loaded, state, requested)
                advance(loaded, state, intended)
                advance(loaded, state, succeeded)
            spent_three += time.perf_counter() - began
            count += batch
        events.append(spent_one / count * 1e6)
        actions.append(spent_three / count * 1e6)
    return {
        "us_of_an_event": round(statistics.median(events), 2),
        "us_of_an_action": round(statistics.median(actions), 2),
        "state_bytes": size,
    }


def main() -> None:
    """Print the figures as JSON."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(json.dumps(measure(), indent=1))


if __name__ == "__main__":
    main()
