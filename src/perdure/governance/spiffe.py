"""Workload identities: SPIFFE IDs (SPIFFE-ID 1.0) of agents and their runs.

``spiffe://<trust domain>/agent/<name>/run/<id>``. A path segment may hold ASCII letters, digits, ``.``, ``-`` and ``_`` only, and
no percent-encoding; names of agents may hold any printable character. So ``_`` is the escape: ``__`` is itself, and each byte
of what else cannot stand there (in UTF-8) is ``_`` with two lower-case hexadecimal digits.
"""

from __future__ import annotations

import re

import msgspec

from perdure.core.errors import InputInvalidError
from perdure.core.limits import NAME_LENGTH_MAX

SCHEME = "spiffe://"
ID_BYTES_MAX = 2_048  # SPIFFE-ID 1.0, section 2.3
TRUST_DOMAIN_BYTES_MAX = 255  # the same
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")
_ESCAPED = re.compile(r"(?:[A-Za-z0-9.-]|__|(?:_[0-9a-f]{2}))+")


class Workload(msgspec.Struct, frozen=True):
    """Who acts, across machines.

    Attributes:
        trust_domain: lower-case letters, digits, ``.``, ``-``, ``_``; at most 255.
        agent: the name of an agent, 1 to 200 printable characters.
        run: the id of its run; empty for the agent itself.

    Raises:
        InputInvalidError: a part cannot be said in a SPIFFE ID, or all of it has more than 2,048 bytes.
    """

    trust_domain: str
    agent: str
    run: str = ""

    def __post_init__(self) -> None:
        checked_trust_domain(self.trust_domain)
        if len(self.uri) > ID_BYTES_MAX:
            message = f"the identity of agent `{self.agent:.40}` would have more than {ID_BYTES_MAX} bytes; give it a shorter name"
            raise InputInvalidError(message)

    @property
    def uri(self) -> str:
        """The SPIFFE ID."""
        text = f"{SCHEME}{self.trust_domain}/agent/{encoded(self.agent)}"
        return f"{text}/run/{encoded(self.run)}" if self.run else text


def read_workload(uri: str) -> Workload:
    """The workload that a SPIFFE ID names; each has one spelling only.

    Raises:
        InputInvalidError: it is no SPIFFE ID of an agent or a run.
    """
    parts = uri.removeprefix(SCHEME).split("/") if len(uri) <= ID_BYTES_MAX else []
    match parts:
        case [domain, "agent", agent]:
            found = Workload(domain, decoded(agent))
        case [domain, "agent", agent, "run", run]:
            found = Workload(domain, decoded(agent), decoded(run))
        case _:
            raise _no_identity(uri)
    if found.uri != uri:
        raise _no_identity(uri)
    return found


def checked_trust_domain(name: str) -> str:
    """``name`` if it can name a trust domain.

    Raises:
        InputInvalidError: it has other characters than lower-case letters, digits, ``.``, ``-``, ``_``, or more than 255.
    """
    if len(name) > TRUST_DOMAIN_BYTES_MAX or not _TRUST_DOMAIN.fullmatch(name):
        message = (
            f"a trust domain has 1 to {TRUST_DOMAIN_BYTES_MAX} lower-case letters, digits, `.`, `-` or `_`, "
            f"found `{name!r:.80}`"
        )
        raise InputInvalidError(message)
    return name


def encoded(name: str) -> str:
    """A name as a path segment; :func:`decoded` gives it back.

    Raises:
        InputInvalidError: it is empty, has more than 200 characters, or is no text (a lone surrogate).
    """
    if not 0 < len(name) <= NAME_LENGTH_MAX:
        raise InputInvalidError(f"a name has 1 to {NAME_LENGTH_MAX} characters, found {len(name)}")
    try:
        text = "".join(_escaped(character) for character in name)
    except UnicodeEncodeError as error:
        raise InputInvalidError(
            "a name has a character that is none (a lone surrogate); leave it out"
        ) from error
    # The segments `.` and `..` mean something else in a path.
    return text.replace(".", "_2e", 1) if text in (".", "..") else text


def decoded(segment: str) -> str:
    """The name that a path segment was made from.

    Raises:
        InputInvalidError: it was made from none.
    """
    if not _ESCAPED.fullmatch(segment):
        raise InputInvalidError(f"`{segment!r:.80}` is no name in a SPIFFE ID")
    data = re.sub(
        rb"_(_|[0-9a-f]{2})",
        lambda found: b"_" if found[1] == b"_" else bytes.fromhex(found[1].decode()),
        segment.encode(),
    )
    try:
        name = data.decode()
        is_the_one = encoded(name) == segment  # `_41` for `A` would be a second spelling of the same name
    except UnicodeDecodeError:
        is_the_one = False
        name = ""
    if not is_the_one:
        raise InputInvalidError(f"`{segment!r:.80}` is no name in a SPIFFE ID")
    return name


def _escaped(character: str) -> str:
    if character == "_":
        return "__"
    if character.isascii() and (character.isalnum() or character in ".-"):
        return character
    return "".join(f"_{byte:02x}" for byte in character.encode())


def _no_identity(uri: str) -> InputInvalidError:
    expected = f"{SCHEME}<trust domain>/agent/<name>/run/<id>"
    return InputInvalidError(f"expected an identity such as `{expected}`, found `{uri!r:.120}`")
