"""The way out of sandboxes, for each agent its own: the proxy's rules, credentials and records."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from perdure.core.audit import AuditRecord
from perdure.core.egress import EgressNote, EgressRules
from perdure.core.errors import StoreUnavailableError
from perdure.core.tools import ToolUse
from perdure.ports import Door, Secrets
from perdure.runtime.system import SystemClock
from perdure.tools.egress import EgressProxy
from perdure.tools.sandbox import PROXY_PORT

Record = Callable[[AuditRecord], Awaitable[None]]
EVERY = "*"  # the agent that stands for those without rules of their own
NOTHING = EgressRules()
CODES = {"allow": "allow", "deny": "deny", "ended": ""}


class Egress:
    """Makes a proxy for each use of a sandbox.

    Args:
        rules: by the agent's name.
        secrets: resolves credentials at the moment of use.
        record: writes to the audit log, durable on return; without it every attempt is refused.
    """

    def __init__(self, rules: Mapping[str, EgressRules], secrets: Secrets, record: Record | None) -> None:
        self._rules = rules
        self._secrets = secrets
        self._record = record
        self._clock = SystemClock()

    def doors(self, use: ToolUse) -> Mapping[int, Door]:
        """The proxy of one use, at the port that its variables name."""
        rules = self._rules.get(use.agent) or self._rules.get(EVERY) or NOTHING

        async def note(said: EgressNote) -> None:
            if self._record is None:
                raise StoreUnavailableError("this process does not write the audit log")
            await self._record(self._made(use, said))

        return {PROXY_PORT: EgressProxy(rules, note, secrets=self._secrets).serve}

    def _made(self, use: ToolUse, said: EgressNote) -> AuditRecord:
        refs = {"host": said.host, "port": str(said.port), "method": said.method, "address": said.address}
        if said.verdict == "ended":
            refs |= {"sent": str(said.sent), "received": str(said.received)}
        run, _, call = use.key.rpartition("/")
        return AuditRecord(
            kind="egress", at_ms=self._clock.now_ms(), run=run, call=int(call) if call.isdigit() else None, agent=use.agent,
            name=f"{said.host}:{said.port}"[:300], verdict="deny" if said.verdict == "deny" else "allow",
            state="ended" if said.verdict == "ended" else "", codes=(said.code,) if said.code else (),
            refs={name: text[:300] for name, text in refs.items() if text},
        )  # fmt: skip
