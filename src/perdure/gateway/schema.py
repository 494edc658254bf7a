"""Gate 1: arguments against the tool's JSON Schema (2020-12). No reference outside the schema is ever followed."""

from __future__ import annotations

from functools import cache
from typing import Any

from perdure.core.errors import ArgumentsInvalidError, DefinitionError

PROBLEMS_SHOWN = 3
SHOWN_CHARACTERS = 120  # of a value in a message
DEPTH_MAX = 64  # of arguments: deeper is an attack on the validator's stack
TEXT_MAX = 1_000_000  # characters of one text: patterns of foreign schemas may be slow on long ones


class ArgumentSchema:
    """A compiled schema.

    Raises:
        DefinitionError: it is no schema of an object, or refers to something outside of itself.
    """

    def __init__(self, parameters: dict[str, Any]) -> None:
        kind, nothing = _validator()
        if parameters.get("type", "object") != "object":
            raise DefinitionError(
                f"a tool's parameters must be an object, found type `{parameters.get('type')}`"
            )
        try:
            kind.check_schema(parameters)
        except Exception as error:  # whatever the validator says of it: it is no schema
            raise DefinitionError(f"a tool's parameters are no JSON Schema: {str(error)[:400]}") from error
        outside = next(_outside(parameters), None)
        if outside is not None:
            raise DefinitionError(
                f"a tool's schema refers to `{outside}`; references must stay within the schema"
            )
        self._validator = kind({"type": "object", **parameters}, registry=nothing)

    def check(self, arguments: dict[str, Any], tool: str) -> None:
        """Nothing if the arguments fit.

        Raises:
            ArgumentsInvalidError: they do not; the message names up to three places, what was expected and found.
        """
        if not _is_bounded(arguments, DEPTH_MAX):
            message = f"the arguments of tool `{tool}` are nested deeper than {DEPTH_MAX}, or have a text over {TEXT_MAX}"
            raise ArgumentsInvalidError(f"{message}; send less", tool=tool)
        try:
            problems = [
                _told(error)
                for error, _ in zip(
                    self._validator.iter_errors(arguments), range(PROBLEMS_SHOWN), strict=False
                )
            ]
        except (
            Exception
        ) as error:  # a reference that leads nowhere, a pattern that is none: no check, so the answer is no
            raise ArgumentsInvalidError(
                f"the arguments of tool `{tool}` cannot be checked: {error}", tool=tool
            ) from error
        if problems:
            message = f"the arguments of tool `{tool}` do not fit its schema: {'; '.join(problems)}"
            raise ArgumentsInvalidError(message, tool=tool, problems=problems)


@cache
def _validator() -> tuple[Any, Any]:
    """The validator and an empty registry; imported when first needed, for it takes its time."""
    from jsonschema import Draft202012Validator
    from referencing import Registry

    return Draft202012Validator, Registry()


def _outside(schema: Any) -> Any:
    """References that leave the schema."""
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str) and not value.startswith("#"):
                yield value
            yield from _outside(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _outside(item)


def _told(error: Any) -> str:
    """One problem: where, what was found, what was expected."""
    place = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path
    ).lstrip(".")
    text = str(error.message)
    if len(text) > 3 * SHOWN_CHARACTERS:
        expected = f"expected {error.validator} {error.validator_value!r}"
        text = f"found {repr(error.instance)[:SHOWN_CHARACTERS]}..., {expected[: 2 * SHOWN_CHARACTERS]}"
    return f"`{place}`: {text}" if place else text


def _is_bounded(value: Any, depth: int) -> bool:
    if isinstance(value, str):
        return len(value) <= TEXT_MAX
    if isinstance(value, dict):
        return depth > 0 and all(_is_bounded(item, depth - 1) for item in value.values())
    if isinstance(value, list):
        return depth > 0 and all(_is_bounded(item, depth - 1) for item in value)
    return True
