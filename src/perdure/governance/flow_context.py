"""The values that one run has seen, with their labels.

A value has a label of its own, not that of its run. It is known by where it stands: what stands in trusted content is trusted, also if a
stranger repeats it (he has not chosen another one); what stands only in other content has its label; what stands nowhere was made by the
model or program from everything that it had seen. Nothing is ever trusted because it was not found, and where a bound is reached, less is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from hashlib import blake2b
from typing import Any, Literal

import msgspec

from perdure.core import paths
from perdure.core.labels import MANY, PUBLIC, UNKNOWN, Label, Labels, join, join_all
from perdure.governance.flow_forms import SHORT_MAX, Forms, Text, equals, forms, occurs, shares, written
from perdure.governance.flow_requests import is_whole, names_of, texts_of

What = Literal["input", "output", "answer", "declassified"]
How = Literal["trusted", "found", "made"]
DECIDING_CHARACTERS_MAX = 1024 * 1024  # trusted and confidential content of one run: four full tool outputs
NAMING_CHARACTERS_MAX = (
    1024 * 1024
)  # untrusted public content, which only names a source: the oldest goes first
NAMED_CHARACTERS_MAX = 256 * 1024  # of one of those: the rest of it names nothing
PIECES_MAX = 4_096
WRITTEN_CHARACTERS_MAX = 256 * 1024  # untrusted values that a run has given to its tools
WHOLES_MAX = 4_096  # outputs and answers that a request is recognised by
CAUSES_MAX = 10_000  # calls whose causes are known
PARTS_MAX = 64  # labels of one value that are told apart by place
PROGRAM = Label(
    sources=("program",)
)  # what a hosted program says that is nowhere in the run: it may have read it anywhere


class Row(msgspec.Struct, frozen=True):
    """Some content: of what kind, of which call (-1 is none), from where, at which path of it, its label, the text (JSON).

    ``writes`` is how many values the run had given to its tools before; ``None`` if not all of them are known.
    """

    what: What
    call: int
    source: str
    path: str
    label: Label
    text: Text
    writes: int | None = 0


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """The label of a value, and how it is known.

    Attributes:
        label: its label.
        how: ``trusted``, it stands in trusted content; ``found``, it stands in other content; ``made``, it stands nowhere.
        source: what it was found in, such as ``tool:mail.read``.
        call: the call whose output that is, if it is one.
        path: where it is there, if that part has a label of its own.
    """

    label: Label
    how: How
    source: str = ""
    call: int | None = None
    path: str = ""


class Derived(msgspec.Struct, frozen=True, kw_only=True):
    """A call that derives from a source: through its ``arguments``, or only through the ``context`` in which it was made."""

    call: int
    how: Literal["arguments", "context"]


class _Cause(msgspec.Struct, frozen=True):
    call: int
    sources: tuple[str, ...]  # of its arguments, as far as they were not made
    seen: int  # how many sources the run had seen


class Context:
    """What is known of the values of one run. Everything is told to it in the order in which it happened.

    Args:
        run: the id of the run, for the names of sources.
        program: what whoever acts may have known before: joined into whatever stands nowhere.
    """

    def __init__(self, run: str = "", program: Label = PUBLIC) -> None:
        self.run = run
        self._program = program
        self.label = PUBLIC  # the join of all that was learned, by tool and not by call: a long run has too many of those
        self._rows: list[Row] = []
        self._trusted: list[Row] = []
        self._deciding = self._naming = 0
        self._sources: dict[str, int] = {}  # in the order in which they were first seen
        self._written: list[tuple[Label, Text]] = []
        self._written_size = 0
        self._is_all_written = True  # whether all that was written is known
        self._lost = PUBLIC  # confidential content that there was no place for
        self._causes: list[_Cause] = []
        self._wholes: dict[bytes, Label] = {}
        self.is_complete = True  # whether the causes of all calls are known

    # -- learning
    def learn(self, what: What, call: int, source: str, value: Any, labels: Labels) -> None:
        """Something came into the run.

        Args:
            what: of which kind.
            call: the number of the call that brought it; -1 for none.
            source: where it came from, for people.
            value: plain data.
            labels: of its parts by path; the empty path is the rest. Without that nothing is known of the rest.
        """
        by_path = dict(labels)
        root = by_path.pop("", UNKNOWN)
        try:
            rest, picked = paths.split(value, tuple(paths.parse(path) for path in by_path))
        except RecursionError:
            rest, picked, root = value, [[] for _ in by_path], join_all((root, *by_path.values()))
        for (path, label), found in zip(by_path.items(), picked, strict=True):
            if found:
                self._keep(what, call, source, path, label, written(found))
        self._keep(what, call, source, "", root, written(rest))
        self._recognise(written(value), join_all((root, *by_path.values())))

    def learn_call(self, call: int, arguments: Iterable[tuple[Any, Origin]] | None) -> None:
        """A use of a tool is dispatched: what its arguments were made from, and what may come back from it.

        Args:
            call: its number.
            arguments: each scalar with its origin; ``None`` if there are too many to tell.
        """
        sources: set[str] = set()
        for value, origin in arguments or ():
            if origin.how != "made":
                sources.update(origin.label.sources)
            text = None if origin.label.is_trusted and origin.label.is_public else written(value)
            if text is not None and len(text) > SHORT_MAX:
                self._write(origin.label, text)
        if arguments is None:
            self._is_all_written = False
            sources.update(self._sources)
        if len(self._causes) < CAUSES_MAX:
            self._causes.append(_Cause(call, tuple(sources), len(self._sources)))
        else:
            self.is_complete = False

    def learn_start(self, call: int) -> None:
        """Another run was started: with what it does, it derives from what this one had seen."""
        self._causes.append(_Cause(call, (), len(self._sources)))

    def give_up(self) -> None:
        """Something could not be learned: from here on nothing is known of any value."""
        self._keep("output", -1, "unknown", "", UNKNOWN, None)
        self._rows.clear()
        self._trusted.clear()
        self._wholes.clear()
        self.is_complete = False

    # -- asking
    def origin_of(self, value: Any, *, is_amount: bool = False) -> Origin:
        """Where a scalar comes from.

        Args:
            value: a string or number; a truth value stands everywhere, so it is always made.
            is_amount: a string of digits is a number too.
        """
        wanted = forms(value, is_amount=is_amount)
        best: Origin | None = None
        for row in self._trusted:
            if _stands(wanted, row) and (label := self._label_in(row, wanted)).is_trusted:
                best = _origin(row, label, "trusted")
                if label.is_public:
                    break
        if best is not None:
            return best
        others = [(row, self._label_in(row, wanted)) for row in reversed(self._rows) if _stands(wanted, row)]
        if others:
            return _found(others, self._lost)
        return Origin(label=join(self.label, self._program), how="made")

    def labels_of(self, value: Any, names: Collection[str] = ()) -> Labels:
        """The labels of a value that leaves the run for another one, by place; of keys, with the rest of it.

        Args:
            value: plain data.
            names: keys that were not chosen here: the parameters of whoever gets it.
        """
        found: dict[str, Label] = {}
        try:
            for path, leaf in paths.leaves(value, PARTS_MAX * 2, names=names):
                if any(part in ("", paths.ANY) or "." in part for part in path):
                    return (("", join(self.label, self._program)),)
                label = self.origin_of(leaf).label
                place = "" if path[-1:] == (paths.KEY,) else ".".join(path)
                found[place] = join(found.get(place, PUBLIC), label)
        except paths.TooLargeError:
            return (("", join(self.label, self._program)),)
        if len(found) > PARTS_MAX:
            return (("", join(self.label, self._program)),)
        root = join_all(found.values())
        return (("", root), *((path, label) for path, label in found.items() if path and label != root))

    def request_label(self, body: Any) -> Label:
        """The label of a model request in a provider's format: of what it contains, as far as each text in it is known."""
        found = PUBLIC
        unknown = join(self.label, self._program)
        try:
            for text in texts_of(body):
                label = self._recognised(text)
                found = join(found, self.origin_of(text).label if label is None else label)
            for name in names_of(body):
                if (origin := self.origin_of(name)).how == "found":
                    found = join(found, origin.label)
            if not is_whole(body):
                found = join_all((found, unknown, Label(sources=("provider",))))
        except paths.TooLargeError:
            return unknown
        return found

    def untrusted_sources(self, limit: int = 3) -> tuple[str, ...]:
        """What the run has seen that is not trusted, the newest first, for people."""
        names: dict[str, None] = {}
        for row in reversed(self._rows):
            if not row.label.is_trusted and row.what != "answer":
                names[shown(row.source, row.call)] = None
        return tuple(names)[:limit]

    def sources(self) -> tuple[str, ...]:
        """Everything that the run has seen something from, in that order."""
        return tuple(self._sources)

    def derived_from(self, sources: Collection[str]) -> Iterator[Derived]:
        """The calls that derive from these sources, such as ``tool:mail.read`` or ``run:ID/CALL``, also through the outputs of others."""
        wanted = set(sources)
        first = min((self._sources[name] for name in wanted if name in self._sources), default=None)
        for cause in self._causes:
            if wanted.intersection(cause.sources):
                yield Derived(call=cause.call, how="arguments")
            elif MANY in cause.sources or (first is not None and first < cause.seen):
                # What was made from too many to tell may have been made from these.
                yield Derived(call=cause.call, how="context")
            else:
                continue
            wanted.add(self.name_of(cause.call))

    def calls(self) -> list[int]:
        """The calls whose causes are known."""
        return [cause.call for cause in self._causes]

    def name_of(self, call: int) -> str:
        """The output of a call as a source."""
        return f"run:{self.run}/{call}"

    # -- keeping
    def _keep(self, what: What, call: int, source: str, path: str, label: Label, text: str | None) -> None:
        for name in label.sources:
            self._sources.setdefault(name, len(self._sources))
        names = tuple(name for name in label.sources if not name.startswith("run:"))
        self.label = join(self.label, msgspec.structs.replace(label, sources=names))
        if text is None or text in ("", "null", "{}", "[]", '""'):
            return
        decides = label.is_trusted or not label.is_public
        if not decides:
            text = text[:NAMED_CHARACTERS_MAX]
        if not self._has_place(len(text), decides=decides):
            if not label.is_public:
                self._lost = join(self._lost, label)
            return  # it stands nowhere now, so it has the label of everything
        writes = len(self._written) if self._is_all_written else None
        row = Row(what, call, source, path, label, Text(text), writes)
        self._rows.append(row)
        if label.is_trusted:
            self._trusted.append(row)
        if decides:
            self._deciding += len(text)
        else:
            self._naming += len(text)

    def _has_place(self, size: int, *, decides: bool) -> bool:
        if decides and self._deciding + size > DECIDING_CHARACTERS_MAX:
            return False
        while len(self._rows) >= PIECES_MAX or (not decides and self._naming + size > NAMING_CHARACTERS_MAX):
            if not self._drop_oldest():
                return False
        return True

    def _drop_oldest(self) -> bool:
        """Forget the oldest content that only names; whether there was any."""
        for index, row in enumerate(self._rows):
            if not row.label.is_trusted and row.label.is_public:
                self._naming -= len(row.text.text)
                del self._rows[index]
                return True
        return False

    def _write(self, label: Label, text: str) -> None:
        """A value was given to a tool: where it comes back, it is what it was."""
        if not self._is_all_written:
            return
        if self._written_size + len(text) > WRITTEN_CHARACTERS_MAX:
            self._is_all_written = False
            return
        self._written.append((label, Text(text)))
        self._written_size += len(text)

    def _label_in(self, row: Row, wanted: Forms) -> Label:
        """The label of a value that stands in some content; in the output of a tool it may be what the run itself had put there.

        Told by what was learned first, and not by the numbers of the calls: what is read may have been asked for long before.
        """
        if row.what != "output":
            return row.label
        if row.writes is None:
            return join(row.label, join(self.label, Label()))
        own = [label for label, text in self._written[: row.writes] if shares(wanted, text)]
        return join_all([row.label, *own])

    def _recognise(self, text: str | None, label: Label) -> None:
        """Know this text in a request; if it was there before with another label, as the worse of both."""
        if text is None:
            return
        name = _fingerprint(text)
        if name in self._wholes:
            label = join(self._wholes[name], label)
        elif len(self._wholes) >= WHOLES_MAX:
            return  # it is not recognised, so it counts as everything
        self._wholes[name] = label

    def _recognised(self, text: str) -> Label | None:
        for candidate in (written(text), _rewritten(text)):
            if candidate and (label := self._wholes.get(_fingerprint(candidate))) is not None:
                return label
        return None


def shown(source: str, call: int | None) -> str:
    """A source for people."""
    name = f"`{paths.shown((source,))}`"
    return name if call is None or call < 0 else f"{name} (call {call})"


def _origin(row: Row, label: Label, how: How) -> Origin:
    call = row.call if row.call >= 0 else None
    return Origin(label=label, how=how, source=row.source, call=call, path=row.path)


def _found(rows: list[tuple[Row, Label]], lost: Label) -> Origin:
    # What a model repeats has a source before it; that one is named.
    row = min((row for row, _ in rows), key=lambda item: item.what == "answer")
    released = [label for row, label in rows if row.what == "declassified" and label.is_public]
    if released:
        label = released[0]
    else:
        # A stranger who has a list of all codes in his mail has not made the one that is confidential public.
        closed = [(row, label) for row, label in rows if not label.is_public]
        row = closed[0][0] if closed else row
        label = join_all([*(label for _, label in closed or rows[:1]), lost])
    return _origin(row, join(label, Label()), "found")


def _stands(wanted: Forms, row: Row) -> bool:
    """Whether a value stands in some content; what was declassified counts as a whole only, not for its parts."""
    return equals(wanted, row.text) if row.what == "declassified" else occurs(wanted, row.text)


def _fingerprint(text: str) -> bytes:
    """16 bytes of BLAKE2b: equal texts, equal fingerprints; others practically never."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _rewritten(text: str) -> str:
    """JSON in a text as the run would write it: programs put outputs into requests with spacing of their own."""
    if not text.startswith(("{", "[")):
        return ""
    try:
        return written(msgspec.json.decode(text)) or ""
    except (msgspec.DecodeError, RecursionError):
        return ""
