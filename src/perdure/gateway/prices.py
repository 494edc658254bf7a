"""Money from tokens: what a model request cost, and what it may cost, in millionths of a US dollar, always rounded up.

A configured price comes first, then the table of ``genai-prices``, which is read from the installed package: nothing
here asks a network. What is not known is ``None`` and never zero, so that a budget of money can refuse it.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from math import ceil

from perdure.core.errors import DefinitionError
from perdure.core.models import Price, Usage

PRICE_USD_MAX = (
    1_000_000  # for a million tokens; a hundred times the dearest model, so more is a slip of the pen
)
PRICE_TEXT_MAX = 32  # characters; keeps the exact arithmetic small
# A configured price has no field for writing a provider's prompt cache, which costs up to twice the input (Anthropic's
# hour-long cache does): the most is charged, so that a budget holds. The table knows the exact price.
CACHE_WRITE_FACTOR = 2
MINUTE_MS = 60_000  # prices of the table begin and end at whole minutes
RATES_MAX = 1_024  # models of the last minutes whose prices are kept; a few hundred bytes each
RATE_SCALES = (100, 10_000_000)  # tokens: below and beyond every step that a price list has


def cost_usd_micros(model: str, usage: Usage, price: Price | None, at_ms: int) -> int | None:
    """What a request cost, rounded up; ``None`` when a price or a count that it needs is not known.

    Args:
        model: as the upstream calls it; looked up in the table unless there is a configured price.
        usage: what the upstream counted.
        price: the configured one, if any. Cached input without a price of its own is charged as input.
        at_ms: when, because prices change.

    Raises:
        DefinitionError: the configured price is not a decimal number.
    """
    if price is not None:
        return _configured(usage, price)
    return _from_table(model, usage, at_ms)


def estimate_usd_micros(
    model: str, input_tokens: int, output_tokens: int, price: Price | None, at_ms: int
) -> int | None:
    """What a request of so many tokens would cost with nothing cached, rounded up; ``None`` when that is not known."""
    usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
    return cost_usd_micros(model, usage, price, at_ms)


def check_price(price: Price) -> None:
    """Make sure that a configured price can be computed with.

    Raises:
        DefinitionError: a field is not a decimal number, negative, or absurdly large.
    """
    for text in (price.input, price.output, price.cached_input):
        if text is not None:
            _per_token(text)


def load_table() -> None:
    """Read the table now: half a second on a small machine, which is better spent in a thread at start."""
    _table_cost("gpt-4o", Usage(input_tokens=0, output_tokens=0), 0)


@functools.lru_cache(maxsize=256)
def _per_token(text: str) -> Fraction:
    """Dollars for a million tokens are millionths of a dollar for one token: no factor is needed."""
    try:
        amount = Decimal(text) if len(text) <= PRICE_TEXT_MAX else None
    except InvalidOperation:
        amount = None
    if amount is None or not amount.is_finite() or not 0 <= amount <= PRICE_USD_MAX:
        message = (
            f"a price is `{text:.40}`; expected US dollars for a million tokens as a decimal number from 0 to "
            f'{PRICE_USD_MAX}, such as `"2.50"`'
        )
        raise DefinitionError(message, price=text)
    return Fraction(amount)


def _configured(usage: Usage, price: Price) -> int | None:
    cached = usage.cached_input_tokens or 0
    written = usage.cache_write_tokens or 0
    plain = None if usage.input_tokens is None else max(0, usage.input_tokens - cached - written)
    cached_price = price.input if price.cached_input is None else price.cached_input
    parts = (
        _part(plain, price.input),
        _part(cached, cached_price),
        _part(written * CACHE_WRITE_FACTOR, price.input),
        _part(usage.output_tokens, price.output),
    )
    total = Fraction(0)
    for part in parts:
        if part is None:
            return None
        total += part
    return ceil(total)


def _part(count: int | None, price: str | None) -> Fraction | None:
    """Nothing of something unpriced is free, and so is an unknown number of something that is free."""
    if count == 0:
        return Fraction(0)
    per_token = None if price is None else _per_token(price)
    if count is None or per_token is None:
        return Fraction(0) if per_token == 0 else None
    return count * per_token


def _from_table(model: str, usage: Usage, at_ms: int) -> int | None:
    if not model or usage.input_tokens is None or usage.output_tokens is None:
        return None
    cached, written = usage.cached_input_tokens or 0, usage.cache_write_tokens or 0
    plain = usage.input_tokens - cached - written
    rates = _rates(model, at_ms // MINUTE_MS) if plain >= 0 else None
    if rates is None:
        return _table_cost(model, usage, at_ms)
    request, *parts = rates
    counts = (plain, usage.output_tokens, cached, written)
    return ceil(request + sum(count * part for count, part in zip(counts, parts, strict=True)))


@functools.lru_cache(maxsize=RATES_MAX)
def _rates(model: str, minute: int) -> tuple[Fraction, ...] | None:
    """What the table asks in a minute, in millionths of a dollar: for a request, and for a token of each kind.

    The library takes a sixth of a millisecond for one price, so it is asked for some round numbers only, and again beyond
    where prices have steps. ``None``: it does not know the model, or its prices are not the same for every token, and it must
    be asked each time.
    """

    def cost(*counts: int) -> Fraction | None:
        plain, output, cached, written = (count * scale for count in counts)
        whole = Usage(
            input_tokens=plain + cached + written, output_tokens=output, cached_input_tokens=cached,
            cache_write_tokens=written,
        )  # fmt: skip
        return _table_price(model, whole, minute * MINUTE_MS)

    found: list[tuple[Fraction, ...]] = []
    for scale in RATE_SCALES:
        request = cost(0, 0, 0, 0)
        single = [cost(*(int(at == kind) for at in range(4))) for kind in range(4)]
        mixed = cost(4, 3, 2, 1)
        if request is None or mixed is None or None in single:
            return None
        rates = [(price - request) / scale for price in single if price is not None]
        if mixed != request + sum(
            count * rate * scale for count, rate in zip((4, 3, 2, 1), rates, strict=True)
        ):
            return None
        found.append((request, *rates))
    return found[0] if all(item == found[0] for item in found) else None


def _table_cost(model: str, usage: Usage, at_ms: int) -> int | None:
    price = _table_price(model, usage, at_ms)
    return None if price is None else ceil(price)


def _table_price(model: str, usage: Usage, at_ms: int) -> Fraction | None:
    # Imported when it is first needed: the table and its library take a third of a second, and most commands of the
    # command line never price anything.
    from genai_prices import Usage as Counts
    from genai_prices import calc_price

    counts = Counts(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cached_input_tokens,
        cache_write_tokens=usage.cache_write_tokens,
    )
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    try:
        found = calc_price(counts, model, genai_request_timestamp=at)
    except (LookupError, ValueError):  # nobody is known to offer it, or the counts contradict each other
        return None
    if usage.input_tokens and found.model_price.input_mtok is None:
        return None
    if usage.output_tokens and found.model_price.output_mtok is None:
        return None
    return Fraction(found.total_price) * 1_000_000
