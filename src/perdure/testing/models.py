"""A model that follows a script: for tests of agents, without a network, a key or chance."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel


@dataclass(frozen=True, slots=True)
class Call:
    """A reply that calls a tool. ``{output}`` as the name stands for the tool of the structured output."""

    tool: str
    args: dict[str, Any] = field(default_factory=dict)


OUTPUT = "{output}"
Reply = str | Call | Sequence[Call] | Exception


class ScriptedModel(FunctionModel):
    """Replies from a script, one for each turn of a conversation.

    The turn is taken from the conversation (how many responses it has), so a process that was restarted goes on with
    the reply that comes next. An exception in the script is raised once, before the reply that follows it.

    Args:
        replies: text, a ``Call``, several calls at once, or an exception.
        log: a file that gets one line for each request that really reaches the model.
        delay: seconds that each request takes.
        name: the model's name in journals.
    """

    def __init__(
        self,
        replies: Sequence[Reply],
        *,
        log: str | Path | None = None,
        delay: float = 0.0,
        name: str = "scripted",
    ) -> None:
        super().__init__(self._reply, stream_function=self._stream, model_name=name)
        self.requests = 0
        self._log = None if log is None else Path(log)
        self._delay = delay
        self._turns: list[str | Sequence[Call]] = []
        self._errors: dict[int, list[Exception]] = {}
        for reply in replies:
            if isinstance(reply, Exception):
                self._errors.setdefault(len(self._turns), []).append(reply)
            else:
                self._turns.append([reply] if isinstance(reply, Call) else reply)

    async def _next(self, messages: list[ModelMessage]) -> tuple[int, str | Sequence[Call]]:
        turn = sum(isinstance(message, ModelResponse) for message in messages)
        self.requests += 1
        if self._log is not None:
            file = os.open(self._log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
            try:
                os.write(file, f"{turn}\n".encode())
            finally:
                os.close(file)
        if self._delay:
            await asyncio.sleep(self._delay)
        if errors := self._errors.get(turn):
            raise errors.pop(0)
        if turn >= len(self._turns):
            raise AssertionError(
                f"the script has {len(self._turns)} replies, but turn {turn + 1} was asked for"
            )
        return turn, self._turns[turn]

    async def _reply(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        turn, reply = await self._next(messages)
        if isinstance(reply, str):
            return ModelResponse(parts=[TextPart(reply)])
        return ModelResponse(
            parts=[
                ToolCallPart(_tool(call, info), call.args, tool_call_id=f"call-{turn}-{index}")
                for index, call in enumerate(reply)
            ]
        )

    async def _stream(
        self, messages: list[ModelMessage], info: AgentInfo
    ) -> AsyncIterator[str | DeltaToolCalls]:
        turn, reply = await self._next(messages)
        if isinstance(reply, str):
            for index, word in enumerate(reply.split(" ")):
                yield f" {word}" if index else word
            return
        for index, call in enumerate(reply):
            yield {
                index: DeltaToolCall(
                    _tool(call, info), json.dumps(call.args), tool_call_id=f"call-{turn}-{index}"
                )
            }


def _tool(call: Call, info: AgentInfo) -> str:
    return info.output_tools[0].name if call.tool == OUTPUT else call.tool
