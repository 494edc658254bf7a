"""What a grant costs beside the bare cryptography of the same library on the same payload."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import msgspec
from joserfc import jws

from perdure.core.canonical import canonical
from perdure.core.verdicts import Demand
from perdure.governance.claims import ActionClaim
from perdure.governance.grants import ALGORITHM, sign, verify
from perdure.governance.keys import private_key, public_record
from perdure.governance.statements import TYPE, statement_of

ROUNDS = 9
CALLS = 300  # of each in a round; they take turns, so that a slow moment hits both
NOW_MS = 1_800_000_000_000


def measure(rounds: int = ROUNDS, calls: int = CALLS) -> dict[str, Any]:
    """Microseconds of making and verifying a grant, of the bare operations, and their ratios (medians over rounds)."""
    key = private_key(b"k" * 32)
    record = public_record(key, "anna", ["finance"], 1)
    claim = ActionClaim(
        run="run", seq=7, tool="pay", tool_digest="t" * 64, arguments={"to": "acme", "cents": 120_000},
        principals=("agent:clerk", "user:ute"), policy="p" * 64,
    )  # fmt: skip
    statement = statement_of(claim, (), audience="here", jti="j", now_s=NOW_MS // 1000, decision="approve")
    token = sign(statement, key)
    payload = canonical(msgspec.to_builtins(statement))
    general: Any = msgspec.json.decode(token)
    header = {"alg": ALGORITHM, "kid": record.kid, "typ": TYPE}
    public = type(key).import_key(msgspec.json.decode(record.jwk))

    def grant() -> object:
        return verify(
            token, claim=claim, reasons=(), keys={record.kid: record}, demands=[Demand(roles=("finance",))],
            audience="here", now_ms=NOW_MS,
        )  # fmt: skip

    works: dict[str, Callable[[], object]] = {
        "mint": lambda: sign(statement, key),
        "bare_mint": lambda: jws.serialize_json([{"protected": dict(header)}], payload, key, [ALGORITHM]),
        "verify": grant,
        "bare_verify": lambda: jws.deserialize_json(general, public, [ALGORITHM]),
    }
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(_micros(work, calls))
    result: dict[str, Any] = {f"{name}_us": round(median(times), 1) for name, times in found.items()}
    result["mint_ratio"] = round(result["mint_us"] / result["bare_mint_us"], 2)
    result["verify_ratio"] = round(result["verify_us"] / result["bare_verify_us"], 2)
    return {**result, "bytes": len(token), "rounds": rounds, "calls": calls}


def _micros(work: Callable[[], object], calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - begin) / calls * 1e6


if __name__ == "__main__":
    print(measure())
