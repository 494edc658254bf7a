"""An external judge: another system is asked before a tool runs. No answer, or none that can be understood, is a denial.

Requests and answers have the shape of Microsoft's webhooks for threat detection of Copilot Studio agents (``POST /validate``,
``POST /analyze-tool-execution``, version 2025-05-01), so that a judge made for those can be asked; what only Perdure knows is in a
member of its own. There, an agent goes on when no answer comes within a second. Here it does not.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import msgspec

from perdure.core.errors import DefinitionError, UnavailableError, UsageError
from perdure.core.principals import RISKS, Principal, Risk
from perdure.core.verdicts import ALLOW, Verdict, deny
from perdure.gateway.gates.case import Case
from perdure.gateway.redact import Redactor
from perdure.ports import Clock, JudgeAnswer, JudgeLink, Secrets

log = logging.getLogger("perdure.judge")

API_VERSION = "2025-05-01"
ANALYZE = f"/analyze-tool-execution?api-version={API_VERSION}"
VALIDATE = f"/validate?api-version={API_VERSION}"
SIGNATURE_HEADER = "perdure-signature"
# For all of it: waiting for a place, connecting, every try. What may do more harm may be thought about for longer.
DEADLINES_MS: Mapping[Risk, int] = MappingProxyType(
    {"low": 500, "medium": 1_000, "high": 2_000, "critical": 5_000}
)
DEADLINE_MS_MAX = 60_000  # a judge that takes longer is a person: that is what holds are for
CONCURRENCY = 32  # questions under way at once; the others wait within their deadline
TRIES_MAX = 2  # of a question that got no answer at all: a kept connection may have been closed just then
TRY_AGAIN_MS = 25
QUESTION_BYTES_MAX = 1024 * 1024  # what is larger is not judged, so it is denied
ANSWER_BYTES_MAX = 64 * 1024
SECRET_BYTES_MIN = 32  # RFC 2104, section 3: not shorter than what the hash gives
TOLERANCE_S = 300  # how old a signature may be where it is checked
TEXT_MAX = 300  # characters of a judge's reason that agents and approvers get to see
DIAGNOSTICS_MAX = 2_000
_MEMBERS = frozenset({"blockAction", "reasonCode", "reason", "diagnostics"})
_KINDS = {
    "string": "String",
    "integer": "Number",
    "number": "Number",
    "boolean": "Boolean",
    "object": "Record",
    "array": "Table",
}


# -- signatures
def signature(secret: str, at_s: int, body: bytes) -> str:
    """The value of ``Perdure-Signature``: ``t=<seconds of the epoch>,v1=<hex of HMAC-SHA256(secret, "t.body")>``."""
    mac = hmac.new(secret.encode(), b"%d." % at_s + body, hashlib.sha256)
    return f"t={at_s},v1={mac.hexdigest()}"


def is_signed(header: str, body: bytes, secret: str, *, now_s: int, tolerance_s: int = TOLERANCE_S) -> bool:
    """For judges: whether a request was signed with a secret, not longer ago (nor later) than the tolerance."""
    time, _, _ = header.partition(",")
    text = time.removeprefix("t=")
    if not (text.isascii() and text.isdigit() and len(text) <= 12) or abs(now_s - int(text)) > tolerance_s:
        return False
    return hmac.compare_digest(header.encode(), signature(secret, int(text), body).encode())


# -- questions
def question(case: Case) -> bytes:
    """What a judge is asked about an action, as JSON.

    ``plannerContext`` is empty: conversations do not leave the runtime.
    """
    spec, key = case.spec, f"{case.run}/{case.call}"
    parameters = spec.parameters.get("properties", {}) if spec else {}
    user = next((link for link in reversed(case.chain) if link.kind != "agent"), None)
    body = {
        "plannerContext": {"userMessage": "", "thought": "", "chatHistory": [], "previousToolsOutputs": []},
        "toolDefinition": {
            "id": case.name,
            "type": "ToolDefinition",
            "name": case.name,
            "description": spec.description if spec else "",
            "inputParameters": [_parameter(name, told) for name, told in parameters.items()],
            "outputParameters": [],
        },
        "inputValues": case.arguments,
        "conversationMetadata": {
            "agent": {
                "id": case.agent, "name": case.agent, "tenantId": "", "environmentId": "", "version": None,
                "isPublished": True,
            },
            "user": {"id": user.name if user else "", "tenantId": ""},
            "conversationId": case.run,
            "planId": case.run,
            "planStepId": key,
        },
        "perdure": {
            "version": 1,
            "run": case.run,
            "call": case.call,
            "key": key,
            "risk": case.risk,
            "effect": case.effect,
            "toolDigest": spec.digest if spec else "",
            "confidence": case.confidence,
            "isRelease": case.is_release,
            "chain": [_link(link) for link in case.chain],
        },
    }  # fmt: skip
    return msgspec.json.encode(body)


def _parameter(name: str, told: Any) -> dict[str, Any]:
    schema = told if isinstance(told, dict) else {}
    kind = schema.get("type")
    return {
        "name": name,
        "description": str(schema.get("description", "")),
        "type": {"$kind": _KINDS.get(kind, "Any") if isinstance(kind, str) else "Any"},
    }


def _link(link: Principal) -> dict[str, Any]:
    return {"kind": link.kind, "name": link.name, "run": link.run, "groups": list(link.groups)}


# -- answers
def read_answer(answer: JudgeAnswer, clean: Callable[[str], str] = str) -> tuple[Verdict, str]:
    """The verdict of an answer, and its diagnostics for operators. Whatever is not exactly an answer is a denial.

    Args:
        answer: as it came.
        clean: takes secrets out of a text.
    """
    if not 200 <= answer.status < 300:
        is_down = answer.status >= 500 or answer.status in (408, 429)
        told = "a redirect, which is not followed" if 300 <= answer.status < 400 else "expected 200"
        code = "judge-unreachable" if is_down else "judge-malformed"
        return deny(code, f"the judge answered with status {answer.status}: {told}"), ""
    if not answer.is_whole:
        return _malformed(f"has more than {ANSWER_BYTES_MAX:,} bytes"), ""
    if answer.encoding.strip().lower() not in ("", "identity"):
        return _malformed("is compressed, which was not asked for"), ""
    if answer.content_type.partition(";")[0].strip().lower() != "application/json":
        return _malformed("is not of type `application/json`"), ""
    try:
        found = json.loads(answer.body.decode(), object_pairs_hook=_once, parse_constant=_constant)
    except (ValueError, RecursionError):
        return _malformed("is no JSON with each member once"), ""
    if not isinstance(found, dict) or not found.keys() <= _MEMBERS:
        # A member that is not known may be a condition.
        return _malformed(f"is not an object of {', '.join(f'`{name}`' for name in sorted(_MEMBERS))}"), ""
    block, number, reason = (found.get(name) for name in ("blockAction", "reasonCode", "reason"))
    is_number = number is None or (isinstance(number, int) and not isinstance(number, bool))
    if not isinstance(block, bool) or not is_number or not (reason is None or isinstance(reason, str)):
        return _malformed("does not say true or false in `blockAction`, or its reason is none"), ""
    diagnostics = found.get("diagnostics")
    text = diagnostics if isinstance(diagnostics, str) else json.dumps(diagnostics) if diagnostics else ""
    shown = _shown(clean(text), DIAGNOSTICS_MAX)
    if not block:
        return ALLOW, shown
    why = _shown(clean(reason or ""), TEXT_MAX)
    message = f"the external judge blocks it: `{why}`" if why else "the external judge blocks it"
    return deny("judge-blocked", message, rule="" if number is None else f"judge:{number}"[:TEXT_MAX]), shown


def _malformed(what: str) -> Verdict:
    return deny("judge-malformed", f"the answer of the judge {what}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a member is there twice")
    return dict(pairs)


def _constant(name: str) -> Any:
    raise ValueError(name)


def _shown(text: str, limit: int) -> str:
    """A foreign text on one line: it is told to agents and shown to people."""
    line = "".join(c if c.isprintable() and c != "`" else " " for c in text[: limit * 2])
    return line.strip()[:limit]


# -- the gate
@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """How one question went.

    Attributes:
        verdict: what follows from it.
        duration_ms: from the question to the verdict, waiting for a place included.
        tries: how often it was sent.
        status: of the last answer; ``None`` if there was none.
        correlation: the id under which the judge knows the question; the same whenever the same action is judged.
        diagnostics: what the judge tells operators.
    """

    verdict: Verdict
    duration_ms: int = 0
    tries: int = 0
    status: int | None = None
    correlation: str = ""
    diagnostics: str = ""


@dataclass(slots=True)
class _Sending:
    """One question while it is under way: what is known of it when the deadline passes."""

    path: str
    correlation: str
    body: bytes = field(repr=False)
    tries: int = 0
    status: int | None = None


class WebhookJudge:
    """Asks an external judge about each use of a tool. A gate; model requests pass.

    Args:
        link: the way to it.
        secrets: where the signing secret is looked up, for each request anew.
        secret: a reference such as ``secret://judge``; at least 32 bytes.
        clock: dates signatures.
        deadlines_ms: by risk tier of the agent; each tier is needed.
        concurrency: questions under way at once.
        note: is told of each opinion; it must not raise.

    Raises:
        DefinitionError: a deadline is missing or not 1 to 60,000 ms, or the concurrency is not positive.
    """

    def __init__(
        self,
        link: JudgeLink,
        *,
        secrets: Secrets,
        secret: str,
        clock: Clock,
        deadlines_ms: Mapping[Risk, int] = DEADLINES_MS,
        concurrency: int = CONCURRENCY,
        note: Callable[[Case, Opinion], None] | None = None,
    ) -> None:
        for risk in RISKS:
            if not 1 <= deadlines_ms.get(risk, 0) <= DEADLINE_MS_MAX:
                message = f"the judge needs a deadline of 1 to {DEADLINE_MS_MAX:,} ms for risk `{risk}`"
                raise DefinitionError(message, risk=risk)
        if concurrency < 1:
            raise DefinitionError(f"the judge's `concurrency` must be positive, found `{concurrency}`")
        self._link = link
        self._secrets = secrets
        self._secret = secret
        self._clock = clock
        self._deadlines_ms = dict(deadlines_ms)
        self._places = asyncio.Semaphore(concurrency)
        self._note = note
        self._redactor = Redactor(secrets.known_values)

    async def judge(self, case: Case) -> Verdict:
        """Allow, or deny with ``judge-blocked``, ``judge-timeout``, ``judge-unreachable`` or ``judge-malformed``."""
        if case.what != "tool":
            return ALLOW
        opinion = await self.ask(case)
        if self._note is not None:
            self._note(case, opinion)
        return opinion.verdict

    async def ask(self, case: Case) -> Opinion:
        """The opinion on one action, within the deadline of its risk. Secrets in the arguments are taken out before."""
        correlation = str(uuid.uuid5(uuid.NAMESPACE_URL, f"perdure:{case.run}/{case.call}"))
        body, _ = self._redactor.clean(question(case))
        if len(body) > QUESTION_BYTES_MAX:
            message = f"the action has more than {QUESTION_BYTES_MAX:,} bytes, so the judge cannot be asked"
            return Opinion(verdict=deny("judge-unreachable", message), correlation=correlation)
        return await self._opinion(_Sending(ANALYZE, correlation, body), self._deadlines_ms[case.risk])

    async def validate(self) -> Verdict:
        """Whether the judge is there and says that it works, asked within the longest deadline; for the start of a runtime."""
        correlation = str(uuid.uuid5(uuid.NAMESPACE_URL, "perdure:validate"))
        sending = _Sending(VALIDATE, correlation, b"")
        return (await self._opinion(sending, max(self._deadlines_ms.values()))).verdict

    async def close(self) -> None:
        """Let go of the link."""
        await self._link.close()

    async def _opinion(self, sending: _Sending, deadline_ms: int) -> Opinion:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            async with asyncio.timeout_at(begun + deadline_ms / 1000), self._places:
                opinion = await self._sent(sending)
        except TimeoutError:
            message = f"the judge did not answer within {deadline_ms:,} ms"
            opinion = Opinion(verdict=deny("judge-timeout", message))
        except UnavailableError as error:
            opinion = Opinion(verdict=deny("judge-unreachable", f"the judge did not answer: {error.message}"))
        except UsageError as error:  # the secret is nowhere, or is none
            message = f"the judge cannot be asked: {error.message}"
            opinion = Opinion(verdict=deny("judge-unreachable", message))
        opinion = replace(
            opinion,
            duration_ms=round((loop.time() - begun) * 1000),
            tries=sending.tries,
            status=sending.status,
            correlation=sending.correlation,
        )
        if opinion.verdict.is_deny:
            code = opinion.verdict.reasons[0].code
            log.info("question %s: %s after %s ms", opinion.correlation, code, opinion.duration_ms)
        return opinion

    async def _sent(self, sending: _Sending) -> Opinion:
        answer = await self._answered(sending)
        sending.status = answer.status
        if sending.path == VALIDATE:
            return Opinion(verdict=_read_validation(answer))
        verdict, diagnostics = read_answer(answer, self._cleaned)
        return Opinion(verdict=verdict, diagnostics=diagnostics)

    async def _answered(self, sending: _Sending) -> JudgeAnswer:
        while True:
            sending.tries += 1
            try:
                return await self._link.post(
                    sending.path, self._headers(sending), sending.body, limit_bytes=ANSWER_BYTES_MAX
                )
            except UnavailableError:
                if sending.tries >= TRIES_MAX:
                    raise
                await asyncio.sleep(TRY_AGAIN_MS / 1000)

    def _headers(self, sending: _Sending) -> dict[str, str]:
        secret = self._secrets.resolve(self._secret)
        if len(secret.encode()) < SECRET_BYTES_MIN:
            message = f"the judge's secret must have at least {SECRET_BYTES_MIN} bytes; store a longer one"
            raise DefinitionError(message)
        return {
            "content-type": "application/json",
            "accept": "application/json",
            "accept-encoding": "identity",
            "user-agent": "perdure",
            "x-ms-correlation-id": sending.correlation,
            SIGNATURE_HEADER: signature(secret, self._clock.now_ms() // 1000, sending.body),
        }

    def _cleaned(self, text: str) -> str:
        return self._redactor.clean(text.encode(errors="replace"))[0].decode(errors="replace")


def _read_validation(answer: JudgeAnswer) -> Verdict:
    verdict, _ = read_answer(replace(answer, body=b'{"blockAction": false}'))
    if verdict.is_deny:
        return verdict
    try:
        found = json.loads(answer.body.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("isSuccessful") is not True:
        return _malformed("does not say `isSuccessful`: true")
    return ALLOW
