"""Labels: where a value came from, whether that can be trusted, and who may see it. They form a lattice.

``join`` is what a value gets that was made from two others: it came from both, is trusted only if both are, may be seen only by those
who may see both, and is secret if one of them is (the product lattice of integrity and confidentiality: D. Denning, "A lattice
model of secure information flow", 1976). It is associative, commutative and idempotent, also where a bound is reached.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from perdure.core.errors import DefinitionError

Integrity = Literal["trusted", "untrusted"]
EVERYONE = "*"  # among readers: public
MANY = "many"  # instead of sources: more than are kept apart, so nothing can be said of them
SOURCES_MAX = 64  # of one label; two for each output that a value was made from
READERS_MAX = 256  # of one label: a larger audience is a group, and has a name
NAME_LENGTH_MAX = 256  # characters of a source or reader


class Label(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is known of a value. The default is what is known of a stranger's text: not to be trusted, and public.

    Attributes:
        sources: such as ``user``, ``agent:desk``, ``tool:mail.read``, ``run:ID/CALL``; sorted. Over 64 of them are ``many``, which
            is never trusted.
        integrity: whether somebody whom the runtime acts for, or a source that was declared so, chose the value.
        readers: who may see it; ``*`` is everyone, nothing is nobody.
        secret: it must not leave at all, whoever reads it.

    Raises:
        DefinitionError: a name is empty or over 256 characters, or there are over 256 readers.
    """

    sources: tuple[str, ...] = ()
    integrity: Integrity = "untrusted"
    readers: tuple[str, ...] = (EVERYONE,)
    secret: bool = False

    def __post_init__(self) -> None:
        sources, readers = tuple(sorted(set(self.sources))), tuple(sorted(set(self.readers)))
        for name in (*sources, *readers):
            if not 0 < len(name) <= NAME_LENGTH_MAX:
                message = f"a label names `{name:.40}`; expected 1 to {NAME_LENGTH_MAX} characters"
                raise DefinitionError(message, name=name)
        if len(readers) > READERS_MAX:
            message = f"a label has {len(readers)} readers; at most {READERS_MAX} are kept: name a group"
            raise DefinitionError(message, readers=len(readers))
        if self.integrity not in ("trusted", "untrusted"):
            message = f"a label's integrity is `{self.integrity!s:.40}`; expected `trusted` or `untrusted`"
            raise DefinitionError(message, integrity=self.integrity)
        if MANY in sources or len(sources) > SOURCES_MAX:
            sources = (MANY,)
            msgspec.structs.force_setattr(self, "integrity", "untrusted")
        if EVERYONE in readers:
            readers = (EVERYONE,)
        msgspec.structs.force_setattr(self, "sources", sources)
        msgspec.structs.force_setattr(self, "readers", readers)

    @property
    def is_trusted(self) -> bool:
        """Whether it may choose what an action does."""
        return self.integrity == "trusted"

    @property
    def is_public(self) -> bool:
        """Whether everyone may see it and it is no secret."""
        return not self.secret and self.readers == (EVERYONE,)

    def has_source(self, source: str) -> bool:
        """Whether it may have come from there: it did, or from too many to tell."""
        return source in self.sources or self.sources == (MANY,)


Labels = tuple[tuple[str, Label], ...]  # of the parts of a value by path; the empty path is the rest of it

PUBLIC = Label(integrity="trusted")  # the bottom: what everyone knows and nobody chose
UNKNOWN = Label(sources=(MANY,), readers=(), secret=True)  # the top: nothing is known of it
USER = Label(sources=("user",), integrity="trusted")
UNTRUSTED = Label()


def join(first: Label, second: Label) -> Label:
    """The label of what was made from both."""
    if first is second or second == PUBLIC:
        return first
    if first == PUBLIC:
        return second
    is_trusted = first.is_trusted and second.is_trusted
    return Label(
        sources=first.sources if first.sources == second.sources else first.sources + second.sources,
        integrity="trusted" if is_trusted else "untrusted",
        readers=_both(first.readers, second.readers),
        secret=first.secret or second.secret,
    )


def join_all(labels: Iterable[Label]) -> Label:
    """The label of what was made from all of them; of nothing, it is public and trusted."""
    found = PUBLIC
    for label in labels:
        found = join(found, label)
    return found


def can_flow(first: Label, second: Label) -> bool:
    """Whether whatever may be done with a value labelled ``second`` may be done with one labelled ``first``."""
    return join(first, second) == second


def _both(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    if first == second or second == (EVERYONE,):
        return first
    return second if first == (EVERYONE,) else tuple(set(first) & set(second))
