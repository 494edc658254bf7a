"""What a tool declares of the flow of information through it: what its arguments decide, and what its output is worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

import msgspec

from perdure.core import paths
from perdure.core.errors import DefinitionError
from perdure.core.labels import EVERYONE, UNTRUSTED, Label

Kind = Literal["recipient", "content", "amount", "credential", "identity", "command", "target"]
Answer = Literal["hold", "deny", "policy"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ANSWERS: tuple[Answer, ...] = get_args(Answer)
TRUSTED_KINDS = frozenset({"recipient", "credential", "identity", "command"})  # unless a sink says otherwise
PATHS_MAX = 64  # of one tool: each is looked up for each leaf


class Sink(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What an argument does with its value.

    Attributes:
        kind: ``recipient`` who gets something, ``content`` what they get, ``amount`` how much, ``credential`` what opens something,
            ``identity`` what somebody is known by, ``command`` what is executed, ``target`` what is acted upon.
        trusted: whether only a trusted value may be there; by default so for ``recipient``, ``credential``, ``identity`` and ``command``.
        untrusted: what happens to one that is not: somebody is asked (``hold``), it does not happen (``deny``), or the policies
            decide (``policy``), which see it among the labels; by default what the tool says.
    """

    kind: Kind
    trusted: bool | None = None
    untrusted: Answer | None = None

    @property
    def needs_trust(self) -> bool:
        """Whether only a trusted value may be there."""
        return self.kind in TRUSTED_KINDS if self.trusted is None else self.trusted


class ToolFlow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a tool declares. Paths are dotted, ``*`` is any element or member, and a path means everything below it.

    Attributes:
        sinks: by the path of an argument, a kind or a :class:`Sink`.
        untrusted: for untrusted values in sinks that do not say it themselves: ``hold``, ``deny`` or ``policy``.
        others: whether arguments without a sink take any value (``any``) or only trusted ones (``trusted``).
        audience: who sees the arguments besides the recipients among them; ``*`` is anyone, nothing is nobody.
        output: the label of what it returns. Undeclared is untrusted. Its sources are filled in.
        outputs: labels of parts of what it returns, by path.
        roles: who may release what is held.
        keeps: whether what it is given may come back from a later use, as files do: its output then has the label of everything that
            the run has seen.

    Raises:
        DefinitionError: a path is empty, there are over 64, or ``*`` and a name are at the same place of ``outputs``; a kind or an answer
            is none.
    """

    sinks: Mapping[str, Kind | Sink] = msgspec.field(default_factory=dict)
    untrusted: Answer = "hold"
    others: Literal["any", "trusted"] = "any"
    audience: tuple[str, ...] = (EVERYONE,)
    output: Label = UNTRUSTED
    outputs: Mapping[str, Label] = msgspec.field(default_factory=dict)
    roles: tuple[str, ...] = ("approver",)
    keeps: bool = False

    def __post_init__(self) -> None:
        check_paths("sinks", self.sinks)
        check_paths("outputs", self.outputs)
        kinds = {sink.kind if isinstance(sink, Sink) else sink for sink in self.sinks.values()}
        answers = {sink.untrusted for sink in self.sinks.values() if isinstance(sink, Sink)} - {None}
        if wrong := sorted(str(item) for item in kinds - set(KINDS)):
            raise DefinitionError(f"a sink is of kind `{wrong[0]:.40}`; expected one of {', '.join(KINDS)}")
        if (answers | {self.untrusted}) - set(ANSWERS) or self.others not in ("any", "trusted"):
            raise DefinitionError(
                "`untrusted` is `hold`, `deny` or `policy`, and `others` is `any` or `trusted`"
            )

    def sink_at(self, path: paths.Path) -> Sink | None:
        """The sink that an argument is, by the longest path that names it; a key is judged where the path leaves it open.

        A scalar where paths go on below it stands for all that they name: ``to: "x"`` is in the sink ``to.*`` like ``to: ["x"]``.
        """
        is_key = path[-1:] == (paths.KEY,)
        place = path[:-1] if is_key else path
        best: tuple[int, Sink] | None = None
        below: Sink | None = None
        for pattern, sink in self.patterns():
            if is_key and len(pattern) == len(place) and pattern[-1] != paths.ANY:
                continue  # the declaration itself names the key
            if paths.covers(pattern, place) and (best is None or len(pattern) >= best[0]):
                best = (len(pattern), sink)
            is_above = not is_key and len(pattern) > len(place) and paths.covers(pattern[: len(place)], place)
            if is_above and (below is None or not below.needs_trust):
                below = sink
        return below if best is None or (below is not None and below.needs_trust) else best[1]

    def patterns(self) -> Iterator[tuple[paths.Path, Sink]]:
        """Each path with its sink."""
        for text, sink in self.sinks.items():
            yield paths.parse(text), sink if isinstance(sink, Sink) else Sink(kind=sink)


def check_paths(name: str, found: Mapping[str, object]) -> None:
    """Hold paths that somebody declared against what can be looked up.

    Raises:
        DefinitionError: one is empty, there are over 64, or ``*`` and a name are at the same place.
    """
    if len(found) > PATHS_MAX:
        raise DefinitionError(f"`{name}` has {len(found)} paths; expected at most {PATHS_MAX}")
    for text in found:
        if not all(text.split(".")) or len(paths.parse(text)) > paths.DEPTH_MAX:
            raise DefinitionError(f"`{text:.80}` in `{name}` is no path; expected such as `to.*.name`")
    if name != "sinks" and (place := paths.ambiguous(paths.parse(text) for text in found)):
        message = f"`{name}` has both `*` and a name at `{place:.80}`, so a part would have two labels"
        raise DefinitionError(message, path=place)
