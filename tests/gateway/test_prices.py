"""Money from tokens: configured prices exactly, the table's against a hand's computing, and nothing made up."""

from __future__ import annotations

import subprocess
import sys

import pytest

from perdure.core.errors import DefinitionError
from perdure.core.models import Price, Usage
from perdure.gateway.prices import check_price, cost_usd_micros, estimate_usd_micros, load_table

AT_MS = 1_767_225_600_000  # 2026-01-01


def cost(price: Price | None, model: str = "m", **counts: int) -> int | None:
    return cost_usd_micros(model, Usage(**counts), price, AT_MS)


@pytest.mark.parametrize(
    ("price", "counts", "expected"),
    [
        # Dollars for a million tokens are millionths for one: 1,000 at 2.50 and 100 at 10 are 2,500 and 1,000.
        (Price(input="2.50", output="10"), {"input_tokens": 1_000, "output_tokens": 100}, 3_500),
        (Price(input="0.15", output="0.60"), {"input_tokens": 1, "output_tokens": 1}, 1),  # 0.75, rounded up
        (Price(input="0.1", output="0"), {"input_tokens": 10, "output_tokens": 5}, 1),  # exact: not 2
        (Price(input="0.1", output="0.2"), {"input_tokens": 3, "output_tokens": 1}, 1),  # 0.5
        (Price(input="0", output="0"), {"input_tokens": 9, "output_tokens": 9}, 0),
        (Price(input="3", output="15"), {"input_tokens": 2**53 + 1, "output_tokens": 0}, 3 * (2**53 + 1)),
        # Cached input has its own price, or that of other input.
        (
            Price(input="2", output="4", cached_input="0.5"),
            {"input_tokens": 100, "output_tokens": 10, "cached_input_tokens": 40},
            60 * 2 + 20 + 40,
        ),
        (
            Price(input="2", output="4"),
            {"input_tokens": 100, "output_tokens": 10, "cached_input_tokens": 40},
            240,
        ),
        # Writing the cache is charged as the dearest provider does.
        (
            Price(input="2", output="4", cached_input="1"),
            {"input_tokens": 100, "output_tokens": 0, "cached_input_tokens": 10, "cache_write_tokens": 30},
            60 * 2 + 10 + 30 * 4,
        ),
    ],
)
def test_a_configured_price_is_computed_exactly_and_rounded_up(
    price: Price, counts: dict[str, int], expected: int
) -> None:
    assert cost(price, **counts) == expected


@pytest.mark.parametrize(
    ("price", "counts"),
    [
        (Price(input="1", output="2"), {"input_tokens": 10}),
        (Price(input="1", output="2"), {"output_tokens": 10}),
        (Price(input="1", output="2"), {}),
        (Price(input="1"), {"input_tokens": 10, "output_tokens": 10}),
        (Price(output="1"), {"input_tokens": 10, "output_tokens": 10}),
        (Price(), {"input_tokens": 10, "output_tokens": 10}),
    ],
)
def test_what_is_missing_is_unknown_and_not_zero(price: Price, counts: dict[str, int]) -> None:
    assert cost(price, **counts) is None


def test_what_is_free_or_was_not_used_needs_no_count_and_no_price() -> None:
    assert cost(Price(input="0.02"), input_tokens=100, output_tokens=0) == 2
    assert cost(Price(input="0.02", output="0"), input_tokens=100) == 2  # embeddings report no output
    assert cost(Price(input="0", output="0")) == 0


@pytest.mark.parametrize("text", ["", "free", "-1", "NaN", "Infinity", "1e9", "1,5", "0" * 40, "1/3"])
def test_a_price_that_is_no_decimal_number_is_refused(text: str) -> None:
    with pytest.raises(DefinitionError, match="a price is"):
        check_price(Price(input="1", cached_input=text))
    with pytest.raises(DefinitionError):
        cost(Price(input=text, output="1"), input_tokens=1, output_tokens=1)


@pytest.mark.parametrize(
    ("model", "input_price", "cached_price", "output_price"),
    [
        # As the makers publish them, in thousandths of a millionth for a token.
        ("gpt-4o", 2_500, 1_250, 10_000),
        ("gpt-4o-mini", 150, 75, 600),
        ("claude-sonnet-4-5", 3_000, 300, 15_000),
    ],
)
def test_the_table_agrees_with_a_hand(
    model: str, input_price: int, cached_price: int, output_price: int
) -> None:
    expected = -(-(900 * input_price + 101 * cached_price + 77 * output_price) // 1_000)
    assert cost(None, model, input_tokens=1_001, output_tokens=77, cached_input_tokens=101) == expected
    plain = -(-(1_000 * input_price + 50 * output_price) // 1_000)
    assert estimate_usd_micros(model, 1_000, 50, None, AT_MS) == plain
    priced = Price(input="1", output="1")
    assert estimate_usd_micros(model, 1_000, 50, priced, AT_MS) == 1_050  # the configured one comes first


def test_the_table_knows_what_writing_the_cache_costs() -> None:
    counts = {"input_tokens": 1_000, "output_tokens": 0, "cache_write_tokens": 400}
    assert cost(None, "claude-sonnet-4-5", **counts) == 600 * 3 + 400 * 3.75


def test_the_table_says_unknown_where_it_does_not_know() -> None:
    assert cost(None, "no-such-model", input_tokens=1, output_tokens=1) is None
    assert cost(None, "", input_tokens=1, output_tokens=1) is None
    assert cost(None, "gpt-4o", input_tokens=1) is None
    assert cost(None, "gpt-4o", output_tokens=1) is None
    # Counts that contradict each other: more cached than there was.
    assert cost(None, "gpt-4o", input_tokens=1, output_tokens=1, cached_input_tokens=50) is None


def test_the_table_is_loaded_only_when_it_is_needed() -> None:
    code = "import sys, perdure.gateway.prices; sys.exit('genai_prices' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    load_table()
    assert "genai_prices" in sys.modules
