"""What every ``Entropy`` must do. Cases take the source."""

from __future__ import annotations

from perdure.ports import Entropy
from perdure.testing.conformance.checks import check, same

DRAWS = 2_000


def gives_bits_in_range(entropy: Entropy) -> None:
    """``bits(n)`` is an integer from 0 up to, not including, 2 to the power of n."""
    for count in (1, 8, 16, 40, 60, 62, 128):
        found = [entropy.bits(count) for _ in range(50)]
        check(all(type(item) is int for item in found), "bits come as an `int`")
        check(all(0 <= item < 1 << count for item in found), f"{count} bits are below 2**{count}")


def uses_every_bit(entropy: Entropy) -> None:
    """Each of 60 bits is set in about half of the draws (a bit that is always equal makes ids collide)."""
    draws = [entropy.bits(60) for _ in range(DRAWS)]
    for bit in range(60):
        share = sum(draw >> bit & 1 for draw in draws) / DRAWS
        check(0.4 < share < 0.6, f"bit {bit} is set in half of the draws, found {share:.2f}")


def does_not_repeat(entropy: Entropy) -> None:
    """No two of 2,000 draws of 60 bits are equal."""
    same(len({entropy.bits(60) for _ in range(DRAWS)}), DRAWS, "draws of 60 bits differ")


CASES = (gives_bits_in_range, uses_every_bit, does_not_repeat)
