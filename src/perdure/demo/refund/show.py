"""Runs the governed refund: held by a policy, released by a signature, in a log whose copy is tampered with."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from perdure import PerdureError, Run, Runtime, agent, current_use, tool
from perdure.demo.trip.show import TripError
from perdure.governance.grants import sign
from perdure.governance.keys import private_key, public_record, write_private
from perdure.runtime.approvals import Pending
from perdure.runtime.datadir import database_of
from perdure.runtime.rulebook import Rules

HERE = Path(__file__).parent
SMALL, LARGE = 900, 90_000  # cents
WAIT_S = 20.0
KEY = "approver.jwk"
_paid: list[tuple[str, int, str]] = []


@tool
async def refund(order: str, cents: int) -> str:
    """Pay money back. This cannot be undone."""
    _paid.append((order, cents, current_use().key))
    return f"{cents} cents paid back for {order}"


@agent("refunds", tools=[refund], roles=["clerk"])
async def refunds(run: Run, order: str, cents: int) -> str:
    """Pays one order back."""
    return str(await run.act(refund, order=order, cents=cents))


class Refund(msgspec.Struct, frozen=True):
    """What happened; times in milliseconds."""

    action: str
    answer: str
    paid: list[tuple[str, int]]
    signed_by: str
    forged: str
    records: int
    problems: list[str]
    tampered: list[str]
    took_ms: int

    @property
    def is_proved(self) -> bool:
        """Whether each refund was paid once, the forgery was refused, and only the copy is found to be tampered with."""
        return (
            sorted(self.paid) == [("A1", SMALL), ("A2", LARGE)]
            and self.forged == "grant-action-mismatch"
            and not self.problems
            and bool(self.tampered)
        )


Say = Callable[[str], None]


async def run_refund(folder: Path, say: Say) -> Refund:
    """Run it in an empty folder.

    Raises:
        TripError: it did not come to its end.
    """
    began = time.monotonic()
    _paid.clear()
    rules = folder / "policies"
    rules.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "rules.cedar", rules)
    data = folder / "data"
    async with Runtime.open(data, agents=[refunds], rules=Rules(policies=rules)) as runtime:
        key = private_key(os.urandom(32))
        _keep(folder / KEY, write_private(key))
        await runtime.keys.register([public_record(key, "you", ["finance"], runtime.now_ms())], by="demo")
        small = await (await runtime.start("refunds", {"order": "A1", "cents": SMALL})).result(WAIT_S)
        say(f"refund of {SMALL} cents: policy `small-refunds` allows it: {small}")
        handle = await runtime.start("refunds", {"order": "A2", "cents": LARGE})
        pending = await _held(runtime)
        say(f"refund of {LARGE} cents: held; nothing was sent. What would happen, and why:")
        for line in pending.shown.splitlines():
            say(f"    {line}")
        action = pending.record.key
        token = sign(runtime.approvals.statement(action, "approve", reason="the parcel came back"), key)
        say(
            f"signed with the demo's own key ({folder / KEY}), which the runtime never reads; yours would be made by"
        )
        say(f"    perdure keys new --role finance, and sign with: perdure approvals approve {action}")
        await runtime.approvals.submit(action, token)
        answer = str(await handle.result(WAIT_S))
        say(f"released once, and executed: {answer}")
        forged = await _forged(runtime, token)
        say(f"the same grant for another refund: refused ({forged})")
        await runtime.audit.checkpoint()
        verified = runtime.audit.verify()
        say(f"the audit log: {verified.size} records, {len(verified.problems)} problems found")
        key_text = runtime.audit.verifier()
    tampered = await _tampered(data, folder / "copy", key_text)
    for problem in tampered[:2]:
        say(f"a copy in which somebody else has approved: {problem}")
    return Refund(
        action=action,
        answer=answer,
        paid=[(order, cents) for order, cents, _ in _paid],
        signed_by="you",
        forged=forged,
        records=verified.size,
        problems=verified.problems,
        tampered=tampered,
        took_ms=round((time.monotonic() - began) * 1000),
    )


def _keep(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


async def _held(runtime: Runtime) -> Pending:
    """The held action, as soon as there is one."""
    until = time.monotonic() + WAIT_S
    while not (found := runtime.approvals.pending()):
        if time.monotonic() > until:
            raise TripError("nothing was held")
        await asyncio.sleep(0.01)
    return found[0]


async def _forged(runtime: Runtime, token: str) -> str:
    """Try to release another refund with a grant that was signed for the first; the code of the refusal."""
    other = await runtime.start("refunds", {"order": "A3", "cents": LARGE})
    pending = await _held(runtime)
    try:
        await runtime.approvals.submit(pending.record.key, token)
    except PerdureError as error:
        await runtime.cancel(other.id, "the demo is over")
        return error.code
    return "accepted"


async def _tampered(data: Path, copy: Path, key: str) -> list[str]:
    """What a verification finds in a copy that somebody has edited."""
    shutil.copytree(data, copy, dirs_exist_ok=True)
    database = database_of(copy)
    whole = database.read_bytes()
    database.write_bytes(whole.replace(b'"by":"you"', b'"by":"eve"'))
    async with Runtime.open(copy, agents=[refunds], beside=True) as runtime:
        return runtime.audit.verify(key=key).problems


def told(found: Refund) -> dict[str, Any]:
    """For programs."""
    return {**msgspec.to_builtins(found), "proved": found.is_proved}
