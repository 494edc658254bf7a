"""What every store does with approvers' keys, grants, containments and facts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from perdure.core.approvals import Containment, GrantRecord, KeyRecord
from perdure.ports import Store, Transaction
from perdure.testing.conformance.checks import check, same
from perdure.testing.conformance.rows import insert

TEXT = "signed"


def _key(kid: str, **fields: Any) -> KeyRecord:
    values = {
        "person": "anna",
        "roles": ("a", "b"),
        "kind": "ed25519",
        "jwk": "{}",
        "created_ms": 1,
        **fields,
    }
    return KeyRecord(kid=kid, **values)


async def keys_are_kept_and_their_key_never_changes(store: Store) -> None:
    """Person, roles, revocation and counter change; the public key and its age do not."""
    first, second = _key("k2", created_ms=1), _key("k1", created_ms=2, kind="passkey", sign_count=3)
    await store.transact(lambda tx: tx.put_key(second))
    await store.transact(lambda tx: tx.put_key(first))
    same(store.read(lambda tx: tx.approver_keys()), [first, second], "the oldest first")
    changed = msgspec.structs.replace(second, person="bob", roles=(), revoked_ms=9, sign_count=4)
    await store.transact(lambda tx: tx.put_key(msgspec.structs.replace(changed, jwk="other", created_ms=99)))
    same(store.read(lambda tx: tx.approver_keys()), [first, changed], "the key itself stays what it was")


async def grants_are_used_once(store: Store) -> None:
    """Whoever asks first gets it; a used one stays as it is."""
    grant = GrantRecord(jti="j1", run="r", call=1, token=TEXT, at_ms=5)
    other = GrantRecord(jti="j2", run="r", call=1, token=TEXT, at_ms=4)

    def fill(tx: Transaction) -> None:
        insert(tx, "r")
        insert(tx, "s")
        tx.put_grant(grant)
        tx.put_grant(other)

    await store.transact(fill)
    same(store.read(lambda tx: tx.grants("r", 1)), [other, grant], "by time")
    same(store.read(lambda tx: [tx.grants("r", 2), tx.grants("s", 1)]), [[], []], "of that action only")
    more = msgspec.structs.replace(grant, token=f"{TEXT}2", at_ms=6)
    await store.transact(lambda tx: tx.put_grant(more))
    same(store.read(lambda tx: tx.grant("j1")), more, "another signature was added")
    await store.transact(lambda tx: tx.put_grant(msgspec.structs.replace(more, run="s")))
    same(store.read(lambda tx: tx.grant("j1")), more, "it does not move to another run")
    same(
        await store.transact(lambda tx: [tx.use_grant("j1", 7), tx.use_grant("j1", 8)]), [True, False], "once"
    )
    await store.transact(lambda tx: tx.put_grant(more))
    same(store.read(lambda tx: tx.grant("j1")), msgspec.structs.replace(more, used_ms=7), "and it stays used")
    check(not await store.transact(lambda tx: tx.use_grant("none", 7)), "one that is not there")
    same([item.jti for item in store.read(lambda tx: tx.run_grants("r"))], ["j2", "j1"], "of a run, by time")
    uses = await store.transact(lambda tx: [tx.use_group("j1", "r", call, 2, 9) for call in (2, 2, 3, 4)])
    same(uses, [True, False, True, False], "so many more actions, each once")
    check(store.read(lambda tx: tx.grant("none")) is None, "nor seen")


async def containments_are_one_for_each_scope(store: Store) -> None:
    """A new one takes the place of the old."""
    found = [
        Containment(scope="*", level="watch", by="a", reason="r", at_ms=1),
        Containment(scope="run:1", level="stop", by="b", reason="s", at_ms=2, until_ms=9),
    ]
    for item in reversed(found):
        await store.transact(lambda tx, item=item: tx.contain(item))  # type: ignore[misc]
    same(store.read(lambda tx: tx.containments()), found, "by scope")
    stronger = msgspec.structs.replace(found[0], level="hold")
    await store.transact(lambda tx: tx.contain(stronger))
    same(store.read(lambda tx: tx.containments()[0]), stronger, "replaced")
    same(await store.transact(lambda tx: [tx.lift("*"), tx.lift("*")]), [True, False], "lifted once")
    same(store.read(lambda tx: tx.containments()), found[1:], "the others stay")


async def facts_are_kept_by_name(store: Store) -> None:
    """The last one counts."""
    check(store.read(lambda tx: tx.fact("a")) is None, "nothing yet")
    for name, value in (("a", "1"), ("b", "2"), ("a", "3")):
        await store.transact(lambda tx, name=name, value=value: tx.set_fact(name, value))  # type: ignore[misc]
    same(store.read(lambda tx: [tx.fact("a"), tx.fact("b")]), ["3", "2"], "by name")


CASES: tuple[Callable[[Store], Any], ...] = (
    keys_are_kept_and_their_key_never_changes,
    grants_are_used_once,
    containments_are_one_for_each_scope,
    facts_are_kept_by_name,
)
