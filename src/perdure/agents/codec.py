"""Type hints as the border between Python values and JSON: what goes into a journal comes out of it equal."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

import msgspec

from perdure.core.errors import DefinitionError, InputInvalidError


def _enc_hook(value: Any) -> Any:
    dump = getattr(type(value), "model_dump", None)  # a pydantic model, without importing pydantic
    if dump is not None:
        return dump(value, mode="json")
    raise NotImplementedError(f"a value of type `{type(value).__name__}` cannot be written as JSON")


def _dec_hook(kind: type, value: Any) -> Any:
    if kind is object:
        return value
    validate = getattr(kind, "model_validate", None)
    if validate is None:
        raise NotImplementedError(f"values of type `{kind.__name__}` cannot be read from JSON")
    return validate(value)


_encoder = msgspec.json.Encoder(order="sorted", enc_hook=_enc_hook)


def to_json(value: Any) -> bytes:
    """``value`` as JSON with sorted keys: plain data, dataclasses, msgspec structs, pydantic models, dates.

    Raises:
        InputInvalidError: a part of it cannot be written as JSON.
    """
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, NotImplementedError, OverflowError, RecursionError) as error:
        message = f"a value of type `{type(value).__name__}` cannot be written as JSON: {error}"
        raise InputInvalidError(f"{message}; use plain data, a dataclass or a pydantic model") from error


class Codec:
    """Reads JSON into one type hint.

    Raises:
        DefinitionError: the hint is one that JSON cannot be read into.
    """

    __slots__ = ("_decode", "hint")

    def __init__(self, hint: Any, what: str) -> None:
        self.hint = Any if hint is None else hint
        if hint is type(None):
            self.hint = None
        try:
            self._decode: Callable[[bytes | msgspec.Raw], Any] = msgspec.json.Decoder(
                self.hint, dec_hook=_dec_hook
            ).decode
        except TypeError as error:
            message = f"the type hint of {what} cannot be read from JSON: {error}"
            raise DefinitionError(f"{message}; use plain data, a dataclass or a pydantic model") from error

    def read(self, data: bytes | msgspec.Raw) -> Any:
        """The value of the hinted type.

        Raises:
            ValueError: the data does not fit the hint (the text says where).
        """
        try:
            return self._decode(data)
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from error
        except NotImplementedError as error:
            raise ValueError(str(error)) from error


class Parameters:
    """The parameters of an agent or step, read from a JSON array (by position) and an object (by name)."""

    def __init__(self, function: Callable[..., Any], what: str, *, skip: int = 0) -> None:
        self.what = what
        hints = hints_of(function, skip=skip)
        found = list(inspect.signature(function).parameters.values())[skip:]
        self.names = [
            item.name
            for item in found
            if item.kind is not item.VAR_POSITIONAL and item.kind is not item.VAR_KEYWORD
        ]
        self._required = [
            item.name for item in found if item.name in self.names and item.default is item.empty
        ]
        self._rest = next((item.name for item in found if item.kind is item.VAR_POSITIONAL), None)
        self._options = next((item.name for item in found if item.kind is item.VAR_KEYWORD), None)
        self._codecs = {
            item.name: Codec(hints.get(item.name, Any), f"parameter `{item.name}` of {what}")
            for item in found
        }
        self._positional = [
            item.name for item in found if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)
        ]
        self._fast = tuple(self._codecs[name] for name in self._positional)

    def read(
        self, args: list[msgspec.Raw], kwargs: dict[str, msgspec.Raw]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Arguments of the hinted types.

        Raises:
            InputInvalidError: an argument is missing, unknown or does not fit.
        """
        if not kwargs and len(args) == len(self._fast) == len(
            self.names
        ):  # the common case, without book-keeping
            return [self._one(name, data) for name, data in zip(self._positional, args, strict=True)], {}
        values: list[Any] = []
        for index, data in enumerate(args):
            name = self._positional[index] if index < len(self._positional) else self._rest
            if name is None:
                raise InputInvalidError(
                    f"{self.what} takes {len(self._positional)} arguments, found {len(args)}"
                )
            values.append(self._one(name, data))
        named: dict[str, Any] = {}
        for name, data in kwargs.items():
            target = name if name in self.names else self._options
            if target is None:
                expected = ", ".join(f"`{item}`" for item in self.names) or "none"
                raise InputInvalidError(f"{self.what} has no parameter `{name}`; it has {expected}")
            named[name] = self._one(target, data)
        missing = [
            name
            for name in self._required
            if name not in self._positional[: len(args)] and name not in kwargs
        ]
        if missing:
            raise InputInvalidError(f"{self.what} needs an argument for `{missing[0]}`")
        return values, named

    def _one(self, name: str, data: msgspec.Raw) -> Any:
        try:
            return self._codecs[name].read(data)
        except ValueError as error:
            raise InputInvalidError(f"argument `{name}` of {self.what} does not fit: {error}") from error

    def read_input(self, data: bytes) -> tuple[list[Any], dict[str, Any]]:
        """Arguments from one JSON input.

        One parameter takes the input as it is, or from an object that has just its name. Several take an object by
        name or an array by position. None takes ``null``.
        """
        if len(self.names) == 1 and self._rest is None and self._options is None:
            return self._read_single(data)
        raw: Any = None
        for kind in (dict[str, msgspec.Raw], list[msgspec.Raw]):
            try:
                raw = msgspec.json.decode(data, type=kind)
                break
            except msgspec.ValidationError:
                continue
        if isinstance(raw, dict):
            return self.read([], raw)
        if isinstance(raw, list):
            return self.read(raw, {})
        if data != b"null":
            raise InputInvalidError(
                f"{self.what} takes an object with its arguments by name, found `{data[:80]!r}`"
            )
        return self.read([], {})

    def _read_single(self, data: bytes) -> tuple[list[Any], dict[str, Any]]:
        name = self.names[0]
        if data == b"null" and not self._required:
            return [], {}
        try:
            return [], {name: self._codecs[name].read(data)}
        except ValueError as error:
            try:
                wrapped = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
            except msgspec.MsgspecError:
                wrapped = {}
            if set(wrapped) == {name}:
                return [], {name: self._one(name, wrapped[name])}
            raise InputInvalidError(f"the input of {self.what} does not fit `{name}`: {error}") from error


def hints_of(function: Callable[..., Any], *, skip: int = 0) -> dict[str, Any]:
    """The resolved type hints of a function, but for those of its first ``skip`` parameters.

    Raises:
        DefinitionError: a hint names something that does not exist.
    """
    left_out = list(inspect.signature(function).parameters)[:skip]
    wanted = {name: hint for name, hint in function.__annotations__.items() if name not in left_out}

    def holder() -> None: ...

    holder.__annotations__ = wanted
    try:
        scope = {**getattr(function, "__globals__", {}), **inspect.getclosurevars(function).nonlocals}
        return typing.get_type_hints(holder, scope, include_extras=True)
    except (NameError, TypeError) as error:
        name = getattr(function, "__qualname__", repr(function))
        message = f"a type hint of `{name}` cannot be resolved: {error}"
        raise DefinitionError(f"{message}; hints must name what the module can see at run time") from error
