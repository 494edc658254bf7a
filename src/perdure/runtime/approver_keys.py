"""The registered public keys of approvers: Ed25519 keys and passkeys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from perdure.core.approvals import KeyRecord
from perdure.core.audit import AuditRecord
from perdure.core.errors import UsageError
from perdure.governance.passkey_registration import (
    CHALLENGE_BYTES,
    INVITATIONS_MAX,
    Invitation,
    answered,
    creation_options,
    invite,
    registered,
)
from perdure.governance.passkeys import RelyingParty, library
from perdure.ports import Transaction

if TYPE_CHECKING:
    from perdure.runtime.runtime import Runtime

INVITATIONS = "passkey-invitations"  # the fact that holds those that are open


class Keys:
    """``runtime.keys``: the registered public keys of approvers."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def rows(self) -> list[KeyRecord]:
        """Every key, also the revoked ones, oldest first."""
        return self._runtime.store.read(lambda tx: tx.approver_keys())

    async def register(self, keys: Sequence[KeyRecord], *, by: str) -> None:
        """Register Ed25519 keys; those that are there get the new person and roles. Durable on return.

        Raises:
            UsageError: a key was revoked (a revoked key never counts again), or is a passkey: those come by invitation.
        """
        now_ms = self._runtime.now_ms()

        def work(tx: Transaction) -> None:
            known = {key.kid: key for key in tx.approver_keys()}
            for key in keys:
                old = known.get(key.kid, key)
                if old.revoked_ms is not None:
                    raise UsageError(f"key `{key.kid}` was revoked; make a new one with `perdure keys new`")
                if "passkey" in (key.kind, old.kind):
                    raise UsageError(f"key `{key.kid}` is a passkey; `perdure keys invite` registers those")
                tx.put_key(key)
                text = f"registered for {key.person}: {', '.join(key.roles)}"
                tx.audit(AuditRecord(kind="keys", at_ms=now_ms, name=key.kid, by=by, refs={"note": text}))

        await self._runtime.store.transact(work)

    async def revoke(self, kid: str, *, by: str, reason: str = "") -> KeyRecord:
        """Revoke a key: nothing that it has signed and that was not used counts any more. Durable on return.

        Raises:
            UsageError: there is none, or several begin like that.
        """
        now_ms = self._runtime.now_ms()

        def work(tx: Transaction) -> KeyRecord:
            found = [key for key in tx.approver_keys() if key.kid.startswith(kid)]
            if len(found) != 1:
                raise UsageError(
                    f"{len(found)} keys begin with `{kid}`, expected one; `perdure keys list` shows them"
                )
            key = msgspec.structs.replace(found[0], revoked_ms=found[0].revoked_ms or now_ms)
            tx.put_key(key)
            tx.audit(
                AuditRecord(
                    kind="keys", at_ms=now_ms, name=key.kid, by=by, refs={"note": f"revoked: {reason}"}
                )
            )
            return key

        return await self._runtime.store.transact(work)

    # -- passkeys
    async def invite(
        self, person: str, roles: Sequence[str], *, relying_party: RelyingParty, by: str
    ) -> dict[str, Any]:
        """Let a person register a passkey, once and within an hour; what their page gives to ``navigator.credentials.create``.

        Args:
            person: who will hold it.
            roles: what they may approve.
            relying_party: for whom it will sign: the domain, and the pages that may ask for it.
            by: who invites.

        Raises:
            InputInvalidError: a name cannot be used, or an origin is no page of the domain.
            UsageError: too many invitations are open.
        """
        now_ms = self._runtime.now_ms()
        challenge = self._runtime.entropy.bits(CHALLENGE_BYTES * 8).to_bytes(CHALLENGE_BYTES, "big")
        made = invite(person, roles, relying_party=relying_party, challenge=challenge, now_ms=now_ms)

        def work(tx: Transaction) -> dict[str, Any]:
            waiting = _open(tx, now_ms)
            if len(waiting) >= INVITATIONS_MAX:
                raise UsageError(f"{INVITATIONS_MAX} invitations are open; wait until some are over")
            _keep(tx, [*waiting, made])
            text = f"{person} may register a passkey of {made.rp_id}: {', '.join(made.roles)}"
            tx.audit(AuditRecord(kind="keys", at_ms=now_ms, name=made.rp_id, by=by, refs={"note": text}))
            return creation_options(made, tx.approver_keys())

        return await self._runtime.store.transact(work)

    async def register_passkey(self, response: str, *, by: str) -> KeyRecord:
        """Register the passkey of an invited person; the invitation is used up. Durable on return.

        Args:
            response: what ``PublicKeyCredential.toJSON`` gave, as JSON.
            by: who hands it in.

        Raises:
            InputInvalidError: it answers no open invitation, or does not hold.
            UsageError: the key was revoked or is registered otherwise, or the extra ``passkeys`` is not installed.
        """
        library()  # takes a quarter of a second: not within the transaction
        now_ms = self._runtime.now_ms()

        def work(tx: Transaction) -> KeyRecord:
            waiting = _open(tx, now_ms)
            invitation = answered(response, waiting, now_ms)
            key = registered(response, invitation, now_ms)
            if any(row.kid == key.kid for row in tx.approver_keys()):
                raise UsageError(f"key `{key.kid}` is registered already, or was revoked")
            tx.put_key(key)
            _keep(tx, [item for item in waiting if item != invitation])
            text = f"passkey of {invitation.rp_id} registered for {key.person}: {', '.join(key.roles)}"
            tx.audit(AuditRecord(kind="keys", at_ms=now_ms, name=key.kid, by=by, refs={"note": text}))
            return key

        return await self._runtime.store.transact(work)


def _open(tx: Transaction, now_ms: int) -> list[Invitation]:
    found = msgspec.json.decode(tx.fact(INVITATIONS) or "[]", type=list[Invitation])
    return [item for item in found if now_ms < item.until_ms]


def _keep(tx: Transaction, invitations: Sequence[Invitation]) -> None:
    tx.set_fact(INVITATIONS, msgspec.json.encode(invitations).decode())
