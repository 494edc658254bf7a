"""Gate 1: arguments against the tool's JSON Schema (2020-12). No reference outside the schema is ever followed."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from perdure.core.errors import ArgumentsInvalidError, DefinitionError

PROBLEMS_SHOWN = 3
SHOWN_CHARACTERS = 120  # of a value in a message
DEPTH_MAX = 64  # of arguments: deeper is an attack on the validator's stack
_OF_OBJECTS = frozenset({"type", "properties", "required", "additionalProperties", "title", "description"})
_OF_SCALARS = frozenset({"type", "title", "description"})
_TYPES: dict[Any, type] = {"string": str, "integer": int, "boolean": bool}
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
        self._plain = _plain(parameters)

    def check(self, arguments: dict[str, Any], tool: str) -> None:
        """Nothing if the arguments fit.

        Raises:
            ArgumentsInvalidError: they do not; the message names up to three places, what was expected and found.
        """
        if self._plain is not None and self._plain.fits(arguments):
            return
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


class _Plain(NamedTuple):
    """A schema of nothing but scalars, as most tools have it: what surely fits it needs no validator."""

    types: dict[str, type]
    required: frozenset[str]

    def fits(self, arguments: dict[str, Any]) -> bool:
        """Whether the arguments surely fit; anything else is for the validator to say."""
        types = self.types
        for name, value in arguments.items():
            if type(value) is not types.get(name) or (type(value) is str and len(value) > TEXT_MAX):
                return False
        return self.required <= arguments.keys()


def _plain(parameters: dict[str, Any]) -> _Plain | None:
    """The same schema, if it is that plain."""
    properties, required = parameters.get("properties"), parameters.get("required", [])
    if parameters.keys() - _OF_OBJECTS or not isinstance(properties, dict):
        return None
    types: dict[str, type] = {}
    for name, part in properties.items():
        kind = part.get("type") if isinstance(part, dict) and not part.keys() - _OF_SCALARS else None
        if not isinstance(kind, str) or kind not in _TYPES:
            return None
        types[name] = _TYPES[kind]
    return _Plain(types, frozenset(required))


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
