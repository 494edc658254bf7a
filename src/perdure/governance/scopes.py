"""Scopes: which tools may be used, as exact names and globs (``github.*``). They are only ever made smaller.

``*`` stands for any characters, none included; there is no other wildcard. All comparisons are on the safe side: two
globs that overlap without one holding the other have nothing in common.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from perdure.core.errors import InputInvalidError
from perdure.core.tools import is_tool_name

Scope = tuple[str, ...]  # sorted, each once; empty allows nothing
PATTERNS_MAX = 64  # a run that needs more is better served by a glob; bounds the size of tokens and the cost of comparing
PATTERN_LENGTH_MAX = 128  # that of a tool's name


def checked_scope(patterns: Iterable[str]) -> Scope:
    """A scope as given from outside, in its only form: sorted, each pattern once.

    Raises:
        InputInvalidError: there are more than 64 patterns, or one is no tool's name with or without ``*``.
    """
    if isinstance(patterns, str):
        raise InputInvalidError("a scope is a list of tool names and globs, found one text")
    found = tuple(sorted(set(patterns)))
    if len(found) > PATTERNS_MAX:
        raise InputInvalidError(f"a scope has at most {PATTERNS_MAX} patterns, found {len(found)}; use globs")
    for pattern in found:
        # Of the characters that `fnmatch` knows, only `*` gets through.
        if len(pattern) > PATTERN_LENGTH_MAX or not is_tool_name(pattern.replace("*", "-")):
            raise InputInvalidError(
                f"a scope has tool names and globs such as `github.*`, found `{pattern!r:.80}`"
            )
    return found


def allows(scope: Scope, tool: str) -> bool:
    """Whether a scope holds a tool."""
    return is_tool_name(tool) and any(fnmatch.fnmatchcase(tool, pattern) for pattern in scope)


def covers(wide: str, narrow: str) -> bool:
    """Whether every tool that ``narrow`` holds is held by ``wide``. May say no where it is so, never yes where it is not."""
    # The `*` of `narrow` is an ordinary character here: only a `*` of `wide` can stand for it, and that stands for all it can be.
    return fnmatch.fnmatchcase(narrow, wide)


def beyond(parent: Scope, asked: Scope) -> Scope:
    """The patterns that are asked for and that no pattern of the parent covers."""
    return tuple(item for item in asked if not any(covers(wide, item) for wide in parent))


def shrink(parent: Iterable[str], asked: Iterable[str]) -> Scope:
    """What of ``asked`` the parent has: each pattern if the parent covers it, else those of the parent that it covers.

    Promises that whatever tool the result allows is allowed by both. Of two globs that merely overlap (``a*`` and ``*b``) it
    keeps nothing.

    Raises:
        InputInvalidError: one of them is no scope, or the result would have more than 64 patterns.
    """
    has, wants = checked_scope(parent), checked_scope(asked)
    found = {item for item in wants if any(covers(wide, item) for wide in has)}
    found |= {item for item in has if any(covers(wide, item) for wide in wants)}
    # What another pattern covers adds nothing; of two that cover each other (`a*`, `a**`) the one that sorts first stays.
    return checked_scope(
        item
        for item in found
        if not any(
            other != item and covers(other, item) and (other < item or not covers(item, other))
            for other in found
        )
    )
