"""Steps: registered functions that a run calls durably."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Generic, ParamSpec, TypeVar, overload

import msgspec

from perdure.agents.codec import Codec, Parameters, hints_of, to_json
from perdure.core.errors import DefinitionError, InputInvalidError, ResultInvalidError, StepNotPortableError
from perdure.core.ids import checked_name

P = ParamSpec("P")
T = TypeVar("T")

RETRIES_MAX = 1_000  # a step that failed a thousand times is not going to succeed
BACKOFF_MS_MAX = 3_600_000  # an hour between attempts at most


class Step(Generic[P, T]):
    """A function with a durability policy. Calling it outside a run calls the function.

    Attributes:
        name: its name in journals: the function's qualified name, or the one given.
        retries: attempts after the first.
        timeout_ms: how long one attempt may take; ``None`` is without limit.
        backoff_ms: the wait before the second attempt; doubles after each, with jitter.
        give_up_on: exceptions that end the step at once.
    """

    def __init__(
        self,
        function: Callable[P, Awaitable[T]] | Callable[P, T],
        *,
        name: str | None = None,
        retries: int = 0,
        timeout: float | None = None,
        backoff: float = 0.5,
        backoff_max: float = 60.0,
        give_up_on: tuple[type[Exception], ...] = (),
    ) -> None:
        _check_portable(function)
        self.function = function
        self.name = checked_name("the name of a step", function.__qualname__ if name is None else name)
        what = f"step `{self.name}`"
        if not 0 <= retries <= RETRIES_MAX:
            raise DefinitionError(f"{what} has `retries={retries}`, expected 0 to {RETRIES_MAX}")
        if (timeout is not None and timeout <= 0) or backoff < 0 or backoff_max < 0:
            raise DefinitionError(f"{what}: `timeout` must be positive and `backoff` not negative (seconds)")
        self.retries = retries
        self.timeout_ms = None if timeout is None else max(1, round(timeout * 1000))
        self.backoff_ms = round(backoff * 1000)
        self.backoff_ms_max = min(BACKOFF_MS_MAX, round(backoff_max * 1000))
        self.give_up_on = give_up_on
        self.is_async = inspect.iscoroutinefunction(function)
        self._parameters = Parameters(function, what)
        self._result = Codec(hints_of(function).get("return", Any), f"the result of {what}")
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self.__module__ = function.__module__
        self.__qualname__ = function.__qualname__
        self.__wrapped__ = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call the function itself: no journal, no retries."""
        return self.function(*args, **kwargs)

    def encode_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The arguments as a JSON array of positions and names."""
        return to_json((args, kwargs) if kwargs else (args,))

    def decode_arguments(self, data: bytes) -> tuple[list[Any], dict[str, Any]]:
        """Arguments of the hinted types; a fresh copy for each attempt, so that a step cannot change its caller's."""
        raw = _decode_arguments(data)
        return self._parameters.read(raw.positions, raw.names)

    def encode_result(self, value: Any) -> bytes:
        """The result as JSON, checked against the hint.

        Raises:
            ResultInvalidError: it cannot be written, or does not fit.
        """
        try:
            data = to_json(value)
            self._result.read(data)
        except (InputInvalidError, ValueError) as error:
            text = error.message if isinstance(error, InputInvalidError) else str(error)
            raise ResultInvalidError(f"the result of step `{self.name}` does not fit: {text}") from error
        return data

    def decode_result(self, data: bytes | msgspec.Raw) -> T:
        """The result of the hinted type, the same from a live step as from the journal."""
        result: T = self._result.read(data)
        return result


class _Arguments(msgspec.Struct, array_like=True, frozen=True):
    positions: list[msgspec.Raw]
    names: dict[str, msgspec.Raw] = {}


_decode_arguments = msgspec.json.Decoder(_Arguments).decode


@overload
def step(function: Callable[P, Awaitable[T]], /) -> Step[P, T]: ...
@overload
def step(function: Callable[P, T], /) -> Step[P, T]: ...
@overload
def step(
    *,
    name: str | None = None,
    retries: int = 0,
    timeout: float | None = None,
    backoff: float = 0.5,
    backoff_max: float = 60.0,
    give_up_on: tuple[type[Exception], ...] = (),
) -> Callable[[Callable[P, Any]], Step[P, Any]]: ...
def step(function: Any = None, /, **options: Any) -> Any:
    """Make a module-level function a step.

    An ``async def`` runs on the event loop, a ``def`` in a thread. At least once until its result is recorded, never
    again after that.

    Args:
        function: the function, when used without parentheses.
        options: ``retries`` (0), ``timeout`` in seconds (none), ``backoff`` in seconds (0.5), ``backoff_max`` (60),
            ``give_up_on`` (exceptions that are not retried), ``name``.

    Raises:
        StepNotPortableError: the function is a lambda, a closure or a method.
        DefinitionError: an option or a type hint cannot work.
    """
    if function is not None:
        return Step(function)
    return lambda chosen: Step(chosen, **options)


def as_step(function: Any) -> Step[..., Any]:
    """The step for what an author gave to ``run.step``: a step, or a plain module-level function."""
    if isinstance(function, Step):
        return function
    found = getattr(function, "__perdure_step__", None)
    if found is None:
        found = Step(function)
        function.__perdure_step__ = found
    known: Step[..., Any] = found
    return known


def _check_portable(function: Any) -> None:
    name = getattr(function, "__qualname__", None)
    reason = None
    if name is None or not (inspect.isfunction(function) or inspect.isbuiltin(function)):
        reason = "is not a plain function"
    elif "<lambda>" in name:
        reason = "is a lambda"
    elif "<locals>" in name:
        reason = "is defined inside another function"
    elif inspect.ismethod(function) or "." in name:
        reason = "is a method"
    if reason is not None:
        message = (
            f"`{name or function!r}` {reason}, so it could not be found again after a restart; "
            "define the step as a function at the top of a module and pass what it needs as arguments"
        )
        raise StepNotPortableError(message, step=str(name))
