"""What several gates say together: the stricter wins, in whatever order they are asked."""

from __future__ import annotations

import pytest

from perdure.core.verdicts import ALLOW, Demand, Verdict, both, deny, hold


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ({"sandbox": "gvisor"}, {"sandbox": "none"}, {"sandbox": "gvisor"}),
        (
            {"sandbox": "gvisor"},
            {"sandbox": "gviser"},
            {"sandbox": "gviser"},
        ),  # unknown, so nothing can meet it
        ({"contain": "watch"}, {"contain": "restrict"}, {"contain": "restrict"}),
        ({"redact": "name, mail"}, {"redact": "iban"}, {"redact": "iban, mail, name"}),
        ({"redact": "a"}, {"limit": "5"}, {"redact": "a", "limit": "5"}),
        ({}, {"limit": "5"}, {"limit": "5"}),
    ],
)
def test_obligations_of_both(first: dict[str, str], second: dict[str, str], together: dict[str, str]) -> None:
    one, other = Verdict(obligations=first), Verdict(obligations=second)
    assert dict(both(one, other).obligations) == together
    assert dict(both(other, one).obligations) == together


def test_the_stricter_wins_and_holds_add_up() -> None:
    assert both(hold("a", "a"), deny("b", "b")).kind == "deny"
    assert both(ALLOW, hold("a", "a")).kind == "hold"
    held = both(hold("a", "a", Demand(roles=("x",))), hold("b", "b", Demand(roles=("y",))))
    assert [demand.roles for demand in held.demands] == [("x",), ("y",)]
    assert [reason.code for reason in held.reasons] == ["a", "b"]
