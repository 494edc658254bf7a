"""Prices that are the same for every token are multiplied here; the result must be what the library itself says."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product
from math import ceil

import pytest
from genai_prices import Usage as Counts
from genai_prices import calc_price

from perdure.core.models import Usage
from perdure.gateway.prices import cost_usd_micros

AT_MS = 1_795_000_000_000
MODELS = (
    "gpt-4o", "gpt-4o-mini", "gpt-5", "o3", "claude-haiku-4-5", "claude-sonnet-4-5", "claude-opus-4-5", "deepseek-chat",
    "gemini-2.5-pro", "gemini-2.5-flash", "mistral-large-latest",
)  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_the_cost_is_what_the_library_says(model: str) -> None:
    """On both sides of the steps that some prices have, with and without a cache."""
    at = datetime.fromtimestamp(AT_MS / 1000, UTC)
    for tokens_in, tokens_out, share in product(
        (0, 7, 150_001, 250_000, 900_001), (0, 1, 12_345), (None, 0, 2, 3)
    ):
        cached = None if share is None else tokens_in // share if share else 0
        written = None if share is None else tokens_in // 5
        counts = Counts(
            input_tokens=tokens_in, output_tokens=tokens_out, cache_read_tokens=cached, cache_write_tokens=written
        )  # fmt: skip
        expected = ceil(calc_price(counts, model, genai_request_timestamp=at).total_price * 1_000_000)
        usage = Usage(
            input_tokens=tokens_in, output_tokens=tokens_out, cached_input_tokens=cached, cache_write_tokens=written
        )  # fmt: skip
        assert cost_usd_micros(model, usage, None, AT_MS) == expected, (model, usage)


def test_counts_that_contradict_each_other_have_no_price() -> None:
    usage = Usage(input_tokens=10, output_tokens=1, cached_input_tokens=8, cache_write_tokens=8)
    assert cost_usd_micros("claude-haiku-4-5", usage, None, AT_MS) is None
