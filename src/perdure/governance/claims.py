"""What is approved: the exact action, and what its approver is shown of it."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import Any

import msgspec

from perdure.core.canonical import canonical, canonical_digest
from perdure.core.principals import Chain
from perdure.core.verdicts import Reason

SHOWN_MAX = 2_000  # characters of one value; of a longer one beginning, end, length and digest are shown
ENDS = 600


class ActionClaim(msgspec.Struct, frozen=True, kw_only=True):
    """One action, as it is about to be done.

    Attributes:
        v: the version of this form.
        run: who acts.
        seq: the number of its call.
        tool: its name.
        tool_digest: SHA-256 of what the tool declares.
        arguments: exactly.
        principals: the run, then who it acts for, as ``kind:name``.
        policy: the digest of the policies that ask for the grant.
    """

    v: int = 1
    run: str
    seq: int
    tool: str
    tool_digest: str
    arguments: Any
    principals: tuple[str, ...]
    policy: str

    @property
    def digest(self) -> str:
        """SHA-256 of its RFC 8785 form.

        Raises:
            InputInvalidError: an argument is a number that not every reader reads alike: give it as text.
        """
        return canonical_digest(msgspec.to_builtins(self))

    @property
    def requesters(self) -> frozenset[str]:
        """The persons that it is done for: none of them can approve it."""
        return frozenset(
            name for kind, _, name in (item.partition(":") for item in self.principals) if kind != "agent"
        )


def claim_of(
    run: str, call: int, tool: str, *, tool_digest: str, arguments: bytes, chain: Chain, policy: str
) -> ActionClaim:
    """The claim of an action; ``arguments`` as JSON."""
    return ActionClaim(
        run=run,
        seq=call,
        tool=tool,
        tool_digest=tool_digest,
        arguments=msgspec.json.decode(arguments),
        principals=tuple(f"{item.kind}:{item.name}" for item in chain),
        policy=policy,
    )


def display(claim: ActionClaim, reasons: Sequence[Reason] = ()) -> str:
    """What an approver is shown. Nothing is left out unseen, and nothing can pass for something else.

    What a reader cannot see (control characters, marks of direction, unassigned ones) and letters that are not ASCII in a word
    with ASCII letters are written by their code points.
    """
    lines = [f"tool       {_clear(claim.tool)}", f"run        {_clear(claim.run)}, call {claim.seq}"]
    lines += [f"acting     {_clear(' for '.join(claim.principals))}"]
    for reason in reasons:
        lines.append(f"asked for  {_clear(reason.message)} ({_clear(reason.code)})")
    lines.append(f"policies   {claim.policy[:16] or 'none'}, tool {claim.tool_digest[:16] or 'none'}")
    lines.append("arguments")
    arguments = claim.arguments if isinstance(claim.arguments, dict) else {"": claim.arguments}
    lines += [f"  {_clear(name)} = {_shown(value)}" for name, value in sorted(arguments.items())]
    return "\n".join(lines)


def display_digest(claim: ActionClaim, reasons: Sequence[Reason] = ()) -> str:
    """SHA-256 of what an approver is shown."""
    return hashlib.sha256(display(claim, reasons).encode()).hexdigest()


def _shown(value: Any) -> str:
    text = _clear(value) if isinstance(value, str) else _clear(canonical(value, strict=False).decode())
    text = f'"{text}"' if isinstance(value, str) else text
    if len(text) <= SHOWN_MAX:
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return f"{text[:ENDS]} [... {len(text) - 2 * ENDS} characters are not shown, SHA-256 of the whole {digest} ...] {text[-ENDS:]}"


def _clear(text: str) -> str:
    """Text in which nothing is hidden and nothing looks like something else."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_word(word) for word in _split(text))


def _split(text: str) -> list[str]:
    """Words and what is between them."""
    found: list[str] = []
    for character in text:
        is_letter = character.isalpha() or unicodedata.combining(character) != 0
        if found and is_letter == (found[-1][-1].isalpha() or unicodedata.combining(found[-1][-1]) != 0):
            found[-1] += character
        else:
            found.append(character)
    return found


def _word(word: str) -> str:
    is_mixed = any(c.isascii() and c.isalpha() for c in word) and not word.isascii()
    is_composed = unicodedata.normalize("NFC", word) == word
    return "".join(
        _point(c)
        if not c.isprintable()
        or (not c.isascii() and (is_mixed and not _is_latin(c)))
        or (not is_composed and unicodedata.combining(c))
        else c
        for c in word
    )


def _is_latin(character: str) -> bool:
    return unicodedata.name(character, "").startswith("LATIN SMALL LETTER") or unicodedata.name(
        character, ""
    ).startswith("LATIN CAPITAL LETTER")


def _point(character: str) -> str:
    return f"<U+{ord(character):04X}>"
