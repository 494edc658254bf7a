"""A witness as a process of its own (C2SP tlog-witness), for another machine or at least another account than the log's.

``POST /add-checkpoint`` cosigns what extends the last checkpoint; ``GET /<SHA-256 of the origin>/checkpoint`` gives that one. What it
cosigned last is one file, made durable before any answer. A witness that lost its file would cosign a rolled-back log, so it
refuses to start without one unless it is told that it is new.

    python -m perdure.hosting.witness --state witness.json --key witness.pem --name witness.example/w1 --log log.key --new
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from time import time  # noqa: TID251 - a process of its own: nobody hands it a clock

import httpx2
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from perdure.core.errors import AuditInvalidError, DefinitionError, InputInvalidError, UnavailableError
from perdure.governance.checkpoints import add_cosignatures, parse_checkpoint
from perdure.governance.merkle import Proof
from perdure.governance.notes import COSIGNS, VerifierKey, parse_signature
from perdure.governance.witness import Cosigned, Refused, Submission, judge

REQUEST_BYTES_MAX = 128 * 1024  # 63 hashes and a note
ANSWER_BYTES_MAX = 16 * 1024
SIZE = "text/x.tlog.size"


class WitnessState:
    """What was cosigned last, by origin, in one file. Only one process may hold it.

    Args:
        path: the file.
        is_new: make an empty one; otherwise it must be there.

    Raises:
        DefinitionError: it is missing, there already although new, damaged, or held by another process.
    """

    def __init__(self, path: Path, *, is_new: bool = False) -> None:
        self._path = path
        self._lock = path.with_name(f"{path.name}.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_new == path.exists():
                found = "is there already" if is_new else "is missing: a witness that forgot must not go on"
                raise DefinitionError(f"the witness's state `{path}` {found}")
            self.notes: Mapping[str, str] = {} if is_new else _read(path)
            if is_new:
                self.keep({})
        except BlockingIOError as error:
            self.close()
            raise DefinitionError(f"another process is the witness of `{path}`") from error
        except BaseException:
            self.close()
            raise

    def keep(self, notes: Mapping[str, str]) -> None:
        """Make this the state; durable on return. Blocks."""
        fresh = self._path.with_name(f"{self._path.name}.new")
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(dict(notes), file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self.notes = dict(notes)

    def close(self) -> None:
        """Let another process have it."""
        self._lock.close()


def _read(path: Path) -> Mapping[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if any(parse_checkpoint(note).origin != origin for origin, note in found.items()):
            raise ValueError("a note is of another origin")
    except (OSError, ValueError, AttributeError, AuditInvalidError) as error:
        raise DefinitionError(f"the witness's state `{path}` is damaged: {error}") from error
    return dict(found)


def witness_app(
    state: WitnessState,
    *,
    name: str,
    private: Ed25519PrivateKey,
    logs: Iterable[VerifierKey],
    now_s: Callable[[], int],
) -> Starlette:
    """The application of a witness.

    Args:
        state: what it cosigned so far.
        name: its name.
        private: its key, used for nothing else.
        logs: the keys of the logs that it cosigns for.
        now_s: gives the time, in seconds since 1970.
    """
    known = {key.name: key for key in logs}
    turn = asyncio.Lock()  # from reading what was cosigned last until the next is durable

    async def add_checkpoint(request: Request) -> Response:
        text = await _text(request)
        if text is None:
            return PlainTextResponse("the request is too large, or no UTF-8\n", 400)
        async with turn:
            answer = judge(text, logs=known, seen=state.notes, name=name, private=private, now_s=now_s())
            if isinstance(answer, Cosigned):
                notes = {**state.notes, answer.checkpoint.origin: answer.note}
                await asyncio.to_thread(state.keep, notes)
        if isinstance(answer, Cosigned):
            return PlainTextResponse(answer.line)
        if answer.status == 409:
            return Response(f"{answer.size}\n", 409, headers={"content-type": SIZE})
        return PlainTextResponse(f"{answer.code}: {answer.message}\n", answer.status)

    async def latest(request: Request) -> Response:
        for origin, note in state.notes.items():
            if hashlib.sha256(origin.encode()).hexdigest() == request.path_params["origin"]:
                return PlainTextResponse(note)
        return PlainTextResponse("nothing was cosigned for that log\n", 404)

    routes = [
        Route("/add-checkpoint", add_checkpoint, methods=["POST"]),
        Route("/{origin}/checkpoint", latest, methods=["GET"]),
    ]
    return Starlette(routes=routes)


async def _text(request: Request) -> str | None:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > REQUEST_BYTES_MAX:
            return None
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None


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
        try:
            answer = await client.post("/add-checkpoint", content=submission.text.encode())
        except httpx2.HTTPError as error:
            raise UnavailableError(f"the witness `{key.name}` did not answer: {error}") from error
        text = answer.text[:ANSWER_BYTES_MAX]
        if answer.status_code == 200:
            return _cosigned(note, text, key)
        if answer.status_code != 409:
            return Refused(answer.status_code, text.partition(":")[0], text.strip())
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


def main(arguments: list[str] | None = None) -> int:
    """Serve until stopped; prints the witness's verifier key first."""
    parser = argparse.ArgumentParser(description="A witness of audit logs.")
    parser.add_argument("--state", type=Path, required=True, help="the file with what was cosigned")
    parser.add_argument("--key", type=Path, required=True, help="the private key, Ed25519 in PEM")
    parser.add_argument("--name", required=True, help="the witness's name")
    parser.add_argument("--log", type=Path, action="append", required=True, help="a log's verifier key")
    parser.add_argument("--new", action="store_true", help="this witness has cosigned nothing yet")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8787)
    chosen = parser.parse_args(arguments)
    try:
        private = load_pem_private_key(chosen.key.read_bytes(), None)
        if not isinstance(private, Ed25519PrivateKey):
            raise DefinitionError("a witness's key is an Ed25519 key")
        logs = [VerifierKey.parse(path.read_text("utf-8")) for path in chosen.log]
        state = WitnessState(chosen.state, is_new=chosen.new)
    except (OSError, ValueError, DefinitionError, InputInvalidError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{VerifierKey.of(chosen.name, private, COSIGNS).text}\n")
    sys.stdout.flush()
    app = witness_app(state, name=chosen.name, private=private, logs=logs, now_s=lambda: int(time()))
    uvicorn.run(app, host=chosen.host, port=chosen.port, log_level="error", lifespan="off", ws="none")
    return 0


if __name__ == "__main__":
    sys.exit(main())
