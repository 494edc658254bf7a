"""A witness as a process of its own (C2SP tlog-witness), for another machine or at least another account than the log's.

``POST /add-checkpoint`` cosigns what extends the last checkpoint; ``GET /<SHA-256 of the origin>/checkpoint`` gives that one. What it
cosigned last is one file, made durable before any answer. A witness that lost its file would cosign a rolled-back log, so it
refuses to start without one unless it is told that it is new.

    perdure audit witness --state witness.json --key witness.pem --name witness.example/w1 --log log.key --new
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from time import time  # noqa: TID251 - a process of its own: nobody hands it a clock

import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from perdure.core.errors import AuditInvalidError, DefinitionError, InputInvalidError
from perdure.governance.checkpoints import parse_checkpoint
from perdure.governance.notes import COSIGNS, SIGNS, VerifierKey
from perdure.governance.witness import Cosigned, judge

REQUEST_BYTES_MAX = 128 * 1024  # 63 hashes and a note
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
        logs: the keys of the logs that it cosigns for; of one log, in the order in which they followed each other.
        now_s: gives the time, in seconds since 1970.
    """
    known: dict[str, list[VerifierKey]] = {}
    for key in logs:
        known.setdefault(key.name, []).append(key)
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


def witness_key(path: Path, *, may_make: bool = False) -> Ed25519PrivateKey:
    """A witness's private key, Ed25519 in PEM.

    Args:
        path: the file.
        may_make: make it, readable by its owner only, if it is not there.

    Raises:
        DefinitionError: it is missing, or is no such key.
    """
    try:
        if may_make and not path.exists():
            made = Ed25519PrivateKey.generate()
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
                file.flush()
                os.fsync(file.fileno())
        private = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise DefinitionError(f"the witness's key `{path}` cannot be used: {error}") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise DefinitionError(f"the witness's key `{path}` is no Ed25519 key")
    return private


def log_keys_of(paths: Iterable[Path]) -> list[VerifierKey]:
    """The keys of the logs to cosign for, one a file.

    Raises:
        DefinitionError: one cannot be read, or is no key of a log.
    """
    found = []
    for path in paths:
        try:
            key = VerifierKey.parse(path.read_text("utf-8"))
        except (OSError, ValueError, InputInvalidError) as error:
            raise DefinitionError(f"`{path}` has no key of a log: {error}") from error
        if key.kind != SIGNS:
            raise DefinitionError(f"`{path}` has the key of a witness, not of a log")
        found.append(key)
    return found


def serve(
    state: WitnessState,
    *,
    name: str,
    private: Ed25519PrivateKey,
    logs: Sequence[VerifierKey],
    host: str,
    port: int,
) -> None:
    """Be a witness until stopped; prints its verifier key first."""
    sys.stdout.write(f"{VerifierKey.of(name, private, COSIGNS).text}\n")
    sys.stdout.flush()
    app = witness_app(state, name=name, private=private, logs=logs, now_s=lambda: int(time()))
    uvicorn.run(app, host=host, port=port, log_level="error", lifespan="off", ws="none")
