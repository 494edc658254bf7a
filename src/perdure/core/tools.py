"""Tools as values: what a tool declares, one use of it, and what it answers."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

from perdure.core.errors import DefinitionError
from perdure.core.flows import ToolFlow
from perdure.core.labels import Labels
from perdure.core.limits import TOOL_OUTPUT_BYTES_MAX, TOOL_TIMEOUT_MS

Recovery = Literal["pure", "idempotent", "queryable", "opaque"]
Effect = Literal["read", "reversible", "compensable", "irreversible"]
RECOVERIES: tuple[Recovery, ...] = ("pure", "idempotent", "queryable", "opaque")
EFFECTS: tuple[Effect, ...] = ("read", "reversible", "compensable", "irreversible")

AGENTS = "agents"  # the toolset in a charter that stands for other agents

_encoder = msgspec.json.Encoder(order="sorted")


class ToolSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a tool says of itself.

    Attributes:
        name: how agents call it; letters, digits, ``_``, ``-`` and ``.``, 1 to 128 characters.
        description: what a model reads.
        parameters: JSON Schema (2020-12) of its arguments, an object.
        output: JSON Schema of what it returns, if it says so.
        recovery: what may be done after a crash between dispatch and record: ``pure`` run it again, ``idempotent`` the same
            key again, ``queryable`` probe first, ``opaque`` nothing: a human decides.
        effect: what it does to the world.
        source: where it comes from, such as ``python``, ``mcp:github``, ``openapi:shop``, ``sql:orders``, ``agent:desk``.
        timeout_ms: how long one call may take.
        output_bytes_max: a longer output becomes an artifact.
        undoable: whether the tool itself can undo a use of it.
        undo_within_ms: for how long after a use; ``None`` is for ever.
        delay_ms: how long a use waits in the outbox before it is sent; until then it can be stopped for nothing.
        flow: what its arguments decide, and what its output is worth, if it says so.
        tiers: the walls that a use of it can be put behind, the usual one first; none: it is code of our own process.
    """

    name: str
    description: str = ""
    parameters: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "object"})
    output: dict[str, Any] | None = None
    recovery: Recovery = "opaque"
    effect: Effect = "irreversible"
    source: str = "python"
    timeout_ms: int = TOOL_TIMEOUT_MS
    output_bytes_max: int = TOOL_OUTPUT_BYTES_MAX
    undoable: bool = False
    undo_within_ms: int | None = None
    delay_ms: int = 0
    flow: ToolFlow | None = None
    tiers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not is_tool_name(self.name):
            message = (
                f"a tool is called `{self.name!r:.80}`; expected 1 to 128 letters, digits, `_`, `-` or `.`"
            )
            raise DefinitionError(message, tool=self.name)
        if self.recovery not in RECOVERIES or self.effect not in EFFECTS:
            message = (
                f"tool `{self.name}` declares recovery `{self.recovery}` and effect `{self.effect}`; expected one of "
                f"{', '.join(RECOVERIES)} and one of {', '.join(EFFECTS)}"
            )
            raise DefinitionError(message, tool=self.name)

    @property
    def digest(self) -> str:
        """SHA-256 of what a model is told and what the gateway relies on: name, description, schemas, declarations."""
        shown: list[Any] = [
            self.name, self.description, self.parameters, self.output, self.recovery, self.effect
        ]  # fmt: skip
        if self.undoable or self.delay_ms:  # what runs of older versions are pinned to has neither
            shown += [self.undoable, self.undo_within_ms, self.delay_ms]
        if self.flow is not None:
            shown.append(self.flow)
        return hashlib.sha256(_encoder.encode(shown)).hexdigest()


class ToolUse(msgspec.Struct, frozen=True, kw_only=True):
    """One use of a tool.

    Attributes:
        run: the run that acts.
        key: the idempotency key ``run/call``; the same on every attempt.
        arguments: checked against the tool's schema.
        tier: the weakest wall that it may be put behind; empty for the usual one.
        agent: whose run it is.
    """

    run: str
    key: str
    arguments: dict[str, Any]
    tier: str = ""
    agent: str = ""


class ToolOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a tool answered.

    Attributes:
        value: plain data: what ``run.act`` returns.
        content: MCP content blocks, where the tool made its own; otherwise the value is shown as text.
        is_error: the tool ran and says that it failed; ``value`` says why.
        labels: of the parts of ``value`` by path, where this output has others than its tool declares; the empty path is the rest.
        tier: the wall that was really in force.
        breach: the limit that it met, if it met one.
    """

    value: Any = None
    content: tuple[dict[str, Any], ...] = ()
    is_error: bool = False
    labels: Labels = ()
    tier: str = ""
    breach: str = ""

    def blocks(self) -> list[dict[str, Any]]:
        """MCP content blocks."""
        if self.content:
            return list(self.content)
        text = self.value if isinstance(self.value, str) else _encoder.encode(self.value).decode()
        return [{"type": "text", "text": text}]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A use of a tool that is to be undone.

    Attributes:
        key: the idempotency key that it had.
        arguments: as they were sent.
        result: what the tool returned.
        before: what the tool saw of the world before it, if it looks.
        after: what it saw after it.
    """

    key: str
    arguments: dict[str, Any]
    result: Any = None
    before: Any = None
    after: Any = None


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe found out about a doubtful use of a tool."""

    answer: Literal["happened", "did-not-happen", "unknown"]
    output: ToolOutput | None = None


def is_tool_name(name: str) -> bool:
    """Whether a tool can be called that (the characters that MCP allows)."""
    return 0 < len(name) <= 128 and name.isascii() and all(c.isalnum() or c in "_-." for c in name)
