"""Asking a witness (C2SP tlog-witness): for a cosignature of a checkpoint, or for the last one that it cosigned."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable

import httpx2

from perdure.core.errors import AuditInvalidError, DefinitionError, UnavailableError
from perdure.governance.checkpoints import add_cosignatures, parse_checkpoint
from perdure.governance.merkle import Proof
from perdure.governance.notes import NOTE_BYTES_MAX, VerifierKey, parse_signature
from perdure.governance.witness import Refused, Submission

ASK_S = 5.0  # a witness fsyncs one small file: who takes longer is as good as away
MESSAGE_MAX = 500  # characters of a refusal that are kept
# What the protocol calls a refusal; other statuses say that the witness is not well, and are tried again.
REFUSALS = {400: "malformed", 403: "signature", 404: "origin-unknown", 422: "fork"}


def witness_client(url: str) -> httpx2.AsyncClient:
    """A way to the witness at that address; the environment has no say in it.

    Raises:
        DefinitionError: it is no address.
    """
    try:
        return httpx2.AsyncClient(base_url=url, trust_env=False, timeout=ASK_S)
    except (httpx2.InvalidURL, ValueError) as error:
        raise DefinitionError(f"the address `{url[:100]}` of a witness cannot be used: {error}") from error


async def latest_of(client: httpx2.AsyncClient, origin: str) -> str:
    """The checkpoint of that log that the witness cosigned last; empty if it has cosigned none. Nothing of it is verified.

    Raises:
        UnavailableError: it did not answer, or with something else.
    """
    status, text = await _asked(client, "GET", f"/{hashlib.sha256(origin.encode()).hexdigest()}/checkpoint")
    if status not in (200, 404):
        raise UnavailableError(f"the witness at `{client.base_url}` answered with status {status}")
    return text if status == 200 else ""


async def _asked(client: httpx2.AsyncClient, method: str, path: str, body: bytes = b"") -> tuple[int, str]:
    data = b""
    try:
        async with client.stream(method, path, content=body) as answer:
            async for chunk in answer.aiter_bytes():
                data += chunk
                if len(data) > NOTE_BYTES_MAX:
                    raise UnavailableError(f"the witness at `{client.base_url}` answers with too much")
            return answer.status_code, data.decode()
    except (httpx2.HTTPError, UnicodeDecodeError) as error:
        reason = str(error) or type(error).__name__
        raise UnavailableError(f"the witness at `{client.base_url}` did not answer: {reason}") from error


async def ask_witness(
    client: httpx2.AsyncClient, note: str, prove: Callable[[int], Proof], key: VerifierKey, *, old: int = 0
) -> str | Refused:
    """The note with the witness's cosignature, or its refusal: then the log is not what it was, or it is not known there.

    May ask twice: once more if the witness names another size than ``old``. Asking again is harmless.

    Args:
        client: with the witness's address as its base.
        note: the signed checkpoint.
        prove: the consistency proof from a size to the checkpoint.
        key: the witness's cosigning key.
        old: the size that it cosigned last, if known.

    Raises:
        UnavailableError: it did not answer, or not as the protocol says.
    """
    size = parse_checkpoint(note).size
    for _ in range(2):
        submission = Submission(old, prove(old) if old else (), note)
        status, text = await _asked(client, "POST", "/add-checkpoint", submission.text.encode())
        if status == 200:
            return _cosigned(note, text, key)
        if status in REFUSALS:
            return Refused(status, REFUSALS[status], text.strip()[:MESSAGE_MAX])
        if status != 409:
            raise UnavailableError(f"the witness `{key.name}` answered with status {status}")
        last = text.strip()
        if not last.isdecimal() or len(last) > 19:
            break
        if int(last) > size:  # it saw more than we have: this log went back
            return Refused(
                409, "rollback", f"the witness cosigned {last} records and the log has {size}", int(last)
            )
        old = int(last)
    raise UnavailableError(f"the witness `{key.name}` answers with changing sizes")


def _cosigned(note: str, text: str, key: VerifierKey) -> str:
    lines = []
    for line in text.splitlines():
        with contextlib.suppress(AuditInvalidError):
            lines.append(parse_signature(line))
    cosigned = add_cosignatures(note, lines, [key])
    if cosigned == note:
        raise UnavailableError(f"the witness `{key.name}` answered without a cosignature of its key")
    return cosigned
