"""Passkeys end to end: invited, registered, asked, signed, counted in the intent; every way round is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perdure import Runtime
from perdure.core.errors import InputInvalidError, UsageError
from perdure.core.principals import Principal
from perdure.governance import grant_errors as errors
from perdure.governance.grants import sign
from perdure.governance.passkeys import RelyingParty
from perdure.governance.signed import co_signed
from perdure.runtime.approvals import passkey_token
from perdure.runtime.rulebook import Rules
from tests.governance.authenticator import PARTY, Authenticator
from tests.runtime.test_approvals import AGENTS, KEYS, Limit, held, opened, sent

pytest.importorskip("webauthn")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    sent.clear()


async def registered(runtime: Runtime, name: str, *roles: str, kind: str = "es256") -> Authenticator:
    device = Authenticator(kind, name)
    options = await runtime.keys.invite(name, roles or ["finance"], relying_party=PARTY, by="admin")
    key = await runtime.keys.register_passkey(device.create(options), by="admin")
    assert (key.person, key.kind) == (name, "passkey")
    return device


def token(
    runtime: Runtime, pending: Any, device: Authenticator, decision: Any = "approve", **changes: Any
) -> str:
    asked = runtime.approvals.ask(
        pending.record.key,
        decision,
        reason=changes.pop("reason", ""),
        arguments=changes.pop("arguments", None),
    )
    return passkey_token(asked.statement, device.answer(asked.options, **changes))


@pytest.mark.parametrize("kind", ["es256", "ed25519"])
async def test_a_passkey_releases_an_action_once(tmp_path: Path, kind: str) -> None:
    async with opened(tmp_path) as runtime:
        device = await registered(runtime, "carol", kind=kind)
        handle = await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        made = token(runtime, pending, device)
        found = await runtime.approvals.submit(pending.record.key, made)
        assert (found.state, found.persons) == ("released", ("carol",))
        assert await handle.result() == "paid 2000 to acme"
        [grant] = runtime.store.read(lambda tx: tx.grants(handle.id, 1))
        assert grant.used_ms is not None
        [key] = [row for row in runtime.keys.rows() if row.kind == "passkey"]
        assert key.sign_count == 1, "kept with the grant"
        notes = [leaf.record for leaf in runtime.audit.records(pending.record.key)]
        assert [item.kind for item in notes] == ["held", "granted", "settled", "intended", "ended"]
        assert notes[1].by == "carol"
        again = await runtime.start("clerk", 2_000)
        with pytest.raises(errors.GrantRefusedError):
            await runtime.approvals.submit((await held(runtime)).record.key, made)
        await again.cancel()


async def test_changed_arguments_and_a_rejection(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        device = await registered(runtime, "carol")
        handle = await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        changed = {"to": "acme", "cents": 1_500}
        made = token(runtime, pending, device, "approve_edited", arguments=changed)
        await runtime.approvals.submit(pending.record.key, made)
        assert await handle.result() == "paid 1500 to acme"
        handle = await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        made = token(runtime, pending, device, "reject", reason="wrong supplier")
        assert (await runtime.approvals.submit(pending.record.key, made)).state == "rejected"
        with pytest.raises(Exception, match="wrong supplier"):
            await handle.result()
        assert sent == [("acme", 1_500)]


@pytest.mark.parametrize("is_passkey_first", [True, False])
async def test_a_quorum_of_both_kinds(tmp_path: Path, is_passkey_first: bool) -> None:
    async with opened(tmp_path, Limit(quorum=3)) as runtime:
        carol = await registered(runtime, "carol")
        dora = await registered(runtime, "dora", kind="ed25519")
        handle = await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        action = pending.record.key
        if not is_passkey_first:
            first = sign(runtime.approvals.statement(action, "approve"), KEYS["anna"])
            assert (await runtime.approvals.submit(action, first)).persons == ("anna",)
        found = await runtime.approvals.submit(action, token(runtime, pending, carol))
        assert "carol" in found.persons
        found = await runtime.approvals.submit(action, token(runtime, pending, carol))
        assert found.persons.count("carol") == 1, "two signatures of one person are one vote"
        if is_passkey_first:
            unfinished = runtime.approvals.unfinished(action)
            assert unfinished is not None
            found = await runtime.approvals.submit(action, co_signed(unfinished.token, KEYS["anna"]))
        assert (found.state, found.persons) == ("waiting", ("anna", "carol"))
        found = await runtime.approvals.submit(action, token(runtime, pending, dora))
        assert (found.state, found.persons) == ("released", ("anna", "carol", "dora"))
        assert await handle.result() == "paid 2000 to acme"


async def test_two_that_sign_at_once_do_not_undo_each_other(tmp_path: Path) -> None:
    async with opened(tmp_path, Limit(quorum=3)) as runtime:
        carol, dora = await registered(runtime, "carol"), await registered(runtime, "dora")
        await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        action = pending.record.key
        first = sign(runtime.approvals.statement(action, "approve"), KEYS["anna"])
        await runtime.approvals.submit(action, first)
        made = [token(runtime, pending, device) for device in (carol, dora)]  # neither has the other's
        for item in made:
            found = await runtime.approvals.submit(action, item)
        assert (found.state, found.persons) == ("released", ("anna", "carol", "dora"))


@pytest.mark.parametrize(
    "changes",
    [
        {"origin": "https://evil.example"},
        {"rp": "evil.example"},
        {"flags": 0x01},
        {"more": {"crossOrigin": True}},
    ],
    ids=str,
)
async def test_what_was_signed_elsewhere_or_unseen_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    async with opened(tmp_path) as runtime:
        device = await registered(runtime, "carol")
        await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        with pytest.raises(errors.GrantSignatureInvalidError):
            await runtime.approvals.submit(pending.record.key, token(runtime, pending, device, **changes))
        assert runtime.approvals.show(pending.record.key).signed == ()
        assert sent == []


async def test_another_challenge_another_person_and_another_key(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        carol = await registered(runtime, "carol")
        mallory = await registered(runtime, "mallory", "canteen")
        await runtime.start("clerk", 2_000, principals=[Principal(kind="user", name="ute")])
        pending = await held(runtime)
        action = pending.record.key
        asked = runtime.approvals.ask(action, "approve")
        other = runtime.approvals.ask(action, "approve")
        submit = runtime.approvals.submit
        with pytest.raises(errors.GrantSignatureInvalidError, match="challenge"):
            await submit(action, passkey_token(other.statement, carol.answer(asked.options)))
        with pytest.raises(errors.GrantRoleMissingError):
            await submit(action, token(runtime, pending, mallory))
        with pytest.raises(errors.GrantSignatureInvalidError):  # mallory's device says that it is carol's
            await submit(action, token(runtime, pending, mallory, id=carol.id))
        with pytest.raises(errors.GrantKeyUnknownError):
            await submit(action, token(runtime, pending, Authenticator("es256", "nobody")))
        ute = await registered(runtime, "ute")
        with pytest.raises(errors.GrantRequesterError):
            await submit(action, token(runtime, pending, ute))
        with pytest.raises(InputInvalidError):
            passkey_token(asked.statement, "{}")
        assert sent == []


async def test_a_counter_that_goes_back_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        device = await registered(runtime, "carol")
        first = await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        device.count = 41
        made = token(runtime, pending, device, "reject", reason="no")
        await runtime.approvals.submit(pending.record.key, made)
        with pytest.raises(Exception, match="no"):
            await first.result()
        device.count = 7  # the copy in the drawer
        handle = await runtime.start("clerk", 2_001)
        pending = await held(runtime)
        for count in (8, 42, 0):
            with pytest.raises(errors.GrantCounterError, match="may have been copied"):
                await runtime.approvals.submit(
                    pending.record.key, token(runtime, pending, device, count=count)
                )
        made = token(runtime, pending, device, count=43)
        assert (await runtime.approvals.submit(pending.record.key, made)).state == "released"
        assert await handle.result() == "paid 2001 to acme"


async def test_grants_are_used_in_any_order_whatever_their_counters_say(tmp_path: Path) -> None:
    """Signed while nothing drives the runs, the counter of the first is lower than that of the second when it is used."""
    async with opened(tmp_path) as runtime:
        device = await registered(runtime, "carol")
        handles = [await runtime.start("clerk", cents) for cents in (2_000, 2_001)]
        await held(runtime, 2)
    async with Runtime.open(tmp_path, agents=AGENTS, beside=True) as outside:
        for pending in reversed(outside.approvals.pending()):
            await outside.approvals.submit(pending.record.key, token(outside, pending, device))
    async with Runtime.open(tmp_path, agents=AGENTS, rules=Rules(gates=[Limit()])) as runtime:
        for handle in handles:
            await runtime.run(handle.id).result()
    assert sorted(sent) == [("acme", 2_000), ("acme", 2_001)]


async def test_a_passkey_that_is_revoked_between_approval_and_use(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        device = await registered(runtime, "carol")
        await runtime.start("clerk", 2_000)
        pending = await held(runtime)
    async with Runtime.open(tmp_path, agents=AGENTS, beside=True) as outside:
        await outside.approvals.submit(pending.record.key, token(outside, pending, device))
        [key] = [row for row in outside.keys.rows() if row.kind == "passkey"]
        await outside.keys.revoke(key.kid, by="admin")
        with pytest.raises(UsageError, match="domain of a registered passkey"):
            outside.approvals.ask(pending.record.key, "approve")
    async with Runtime.open(tmp_path, agents=AGENTS, rules=Rules(gates=[Limit()])) as runtime:
        run = pending.record.run
        entries = lambda: [item for item in runtime.run(run).journal() if type(item).__name__ == "ActionHeld"]  # noqa: E731
        with runtime.changes(run) as changed:
            while len(entries()) < 2:
                await runtime.wait_for(changed)
                changed.clear()
        again = await held(runtime)
        assert "grant-key-revoked" in runtime.actions.show(again.record.key).history[-1].reason.message  # type: ignore[attr-defined]
        assert sent == []
        options = await runtime.keys.invite("carol", ["finance"], relying_party=PARTY, by="admin")
        with pytest.raises(UsageError, match="was revoked"):
            await runtime.keys.register_passkey(device.create(options), by="admin")


async def test_a_vote_of_a_revoked_key_does_not_block_the_others(tmp_path: Path) -> None:
    async with opened(tmp_path, Limit(quorum=2)) as runtime:
        carol, dora = await registered(runtime, "carol"), await registered(runtime, "dora")
        await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        action = pending.record.key
        await runtime.approvals.submit(action, token(runtime, pending, carol))
        [key] = [row for row in runtime.keys.rows() if row.person == "carol"]
        await runtime.keys.revoke(key.kid, by="admin")
        assert runtime.approvals.unfinished(action) is None
        assert (await runtime.approvals.submit(action, token(runtime, pending, dora))).persons == ("dora",)
        unfinished = runtime.approvals.unfinished(action)
        assert unfinished is not None
        found = await runtime.approvals.submit(action, co_signed(unfinished.token, KEYS["anna"]))
        assert (found.state, found.persons) == ("released", ("anna", "dora"))


async def test_an_invitation_is_used_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        options = await runtime.keys.invite("carol", ["finance"], relying_party=PARTY, by="admin")
        device = Authenticator("es256", "carol")
        with pytest.raises(InputInvalidError, match="cannot be registered"):
            await runtime.keys.register_passkey(device.create(options, origin="https://evil.example"), by="x")
        response = device.create(options)
        await runtime.keys.register_passkey(response, by="admin")
        for text in (response, Authenticator("es256", "eve").create(options)):
            with pytest.raises(InputInvalidError, match="no invitation that is open"):
                await runtime.keys.register_passkey(text, by="eve")
        [key] = [row for row in runtime.keys.rows() if row.kind == "passkey"]
        assert json.loads(key.jwk)["rp_id"] == PARTY.id
        with pytest.raises(UsageError, match="is a passkey"):
            await runtime.keys.register([key], by="eve")
        other = RelyingParty(id="other.example", origins=("https://other.example",))
        options = await runtime.keys.invite("dora", ["finance"], relying_party=other, by="admin")
        await runtime.keys.register_passkey(Authenticator("es256", "dora").create(options), by="admin")
        await runtime.start("clerk", 2_000)
        pending = await held(runtime)
        with pytest.raises(UsageError, match=r"`approve.example`, `other.example`"):
            runtime.approvals.ask(pending.record.key, "approve")
        asked = runtime.approvals.ask(pending.record.key, "approve", rp_id="other.example")
        assert asked.options["rpId"] == "other.example"
        assert len(asked.options["allowCredentials"]) == 1
