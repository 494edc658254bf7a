"""Egress as values: which hosts code in a sandbox may reach, and what the proxy says of each attempt."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import unquote

import msgspec

from perdure.core.errors import DefinitionError

HOST_CHARACTERS_MAX = 253
RULES_MAX = 1_000  # of one agent: each connection is held against all
LABEL = re.compile(r"[a-z0-9_-]{1,63}")
TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
CREDENTIAL = re.compile(r"secret://[^\s{}]+|[\x21-\x7e \t]*\{secret://[^\s{}]+\}[\x21-\x7e \t]*")
# A rule cannot set these: they say where a message ends, where it goes, or are for the next hop alone.
FRAMING = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade", "expect", "proxy-connection"}
)  # fmt: skip


class EgressHost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One host that may be reached.

    Attributes:
        host: its name, or ``*.example.org`` for every name below that one, but not that one itself.
        ports: which ports.
        methods: of plain HTTP, and of HTTP that the proxy carries on by TLS; empty for any.
        paths: the beginnings that its paths may have; empty for any.
        tls: HTTP requests for it go out by TLS, so that the proxy can judge them and put credentials in. With this, CONNECT is refused:
            what goes through a tunnel nobody sees.
        header: a header that the proxy sets; whatever the sandbox put there is dropped.
        secret: its value: ``secret://name``, or a text with such a reference in braces, ``Bearer {secret://name}``.
        private: whether its addresses may be private ones.
    """

    host: str
    ports: tuple[int, ...] = (443, 80)
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    tls: bool = False
    header: str = ""
    secret: str = ""
    private: bool = False

    def __post_init__(self) -> None:
        name = self.host.removeprefix("*.")
        if len(name) > HOST_CHARACTERS_MAX or not all(LABEL.fullmatch(part) for part in name.split(".")):
            raise DefinitionError(
                f"`{self.host:.200}` is no host of an egress rule; expected a name in lower case such as `api.example.org` or `*.example.org`"
            )
        if not self.ports or any(not 1 <= port <= 65_535 for port in self.ports):
            raise DefinitionError(
                f"the egress rule for `{self.host}` has ports {self.ports}; expected 1 to 65535"
            )
        if bool(self.header) != bool(self.secret):
            raise DefinitionError(
                f"the egress rule for `{self.host}` has `header` or `secret`; it needs both"
            )
        if any(not path.startswith("/") for path in self.paths):
            raise DefinitionError(f"the paths of the egress rule for `{self.host}` begin with `/`")
        if wrong := [name for name in self.methods if not TOKEN.fullmatch(name) or name != name.upper()]:
            raise DefinitionError(
                f"the egress rule for `{self.host}` has method `{wrong[0]!r:.40}`; expected capitals such as `GET`"
            )
        if self.header:
            self._check_credential()

    def _check_credential(self) -> None:
        if not TOKEN.fullmatch(self.header) or self.header.lower() in FRAMING:
            raise DefinitionError(
                f"the egress rule for `{self.host}` sets `{self.header!r:.80}`; expected the name of a header that carries a credential"
            )
        if not CREDENTIAL.fullmatch(self.secret):
            raise DefinitionError(
                f"the `secret` of the egress rule for `{self.host}` names none; expected `secret://name`, or a text with one such as "
                "`Bearer {secret://name}`"
            )

    def covers(self, host: str, port: int) -> bool:
        """Whether it is about this host and port; ``host`` is in lower case, without a dot at its end."""
        if port not in self.ports:
            return False
        if self.host.startswith("*."):
            return host.endswith(self.host[1:]) and len(host) > len(self.host) - 1
        return host == self.host

    def takes(self, path: str) -> bool:
        """Whether a path (and query) is among those that it may have; where it is limited, only paths that all servers read alike."""
        return not self.paths or (is_plain(path) and path.startswith(self.paths))


def is_plain(path: str) -> bool:
    """Whether every server reads this path alike: nothing in it goes up, however it is written, and nothing hides by encoding."""
    written = path.partition("?")[0]
    text = unquote(written, errors="replace")
    if "%2f" in written.lower() or "//" in text or any(c in "%\\\ufffd" or not c.isprintable() for c in text):
        return False
    names = [part.partition(";")[0] for part in text.split("/")]  # some servers take `..;` for `..`
    return not any(name and not name.strip(". ") for name in names)


class EgressRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the sandboxes of one agent may reach; nothing else."""

    allow: tuple[EgressHost, ...] = ()

    def __post_init__(self) -> None:
        if len(self.allow) > RULES_MAX:
            raise DefinitionError(
                f"an agent has {len(self.allow)} egress rules, and {RULES_MAX} is the limit"
            )

    def find(self, host: str, port: int) -> EgressHost | None:
        """The first rule about a host and port."""
        return next((rule for rule in self.allow if rule.covers(host, port)), None)


class EgressNote(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to one request or tunnel.

    Attributes:
        host: the name that was asked for.
        port: the port.
        method: of the request; ``CONNECT`` for a tunnel.
        verdict: ``allow``, ``deny``, or ``ended`` for the second note of an allowed one.
        code: why it was refused, or how it ended.
        address: where it went.
        sent: bytes of its body, or through the tunnel, that went out.
        received: bytes that came back.
    """

    host: str
    port: int
    method: str
    verdict: Literal["allow", "deny", "ended"]
    code: str = ""
    address: str = ""
    sent: int = 0
    received: int = 0
