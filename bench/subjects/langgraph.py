"""Rival: LangGraph's graph API on its SQLite saver with ``durability="sync"``; also its growing message list."""

from __future__ import annotations

import operator
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph

from bench.workload import token


class Tokens(TypedDict):
    """The state of a run: its length and its tokens so far."""

    steps: int
    tokens: Annotated[list[str], operator.add]


class Talk(TypedDict):
    """The state of a session: its messages."""

    messages: Annotated[list[str], operator.add]


async def token_node(state: Tokens) -> dict[str, list[str]]:
    """One step: one superstep of the graph, so one checkpoint."""
    return {"tokens": [token(len(state["tokens"]))]}


def after_token(state: Tokens) -> str:
    """Go round until there are enough."""
    return "token" if len(state["tokens"]) < state["steps"] else END


async def reply_node(state: Talk) -> dict[str, list[str]]:
    """One turn of a session: a reply as long as the message."""
    return {"messages": [state["messages"][-1]]}


class Bench:
    """One node that goes round: the graph that has a checkpoint for each step and nothing else."""

    async def setup(self, directory: Path) -> None:
        """Open the saver (it sets WAL itself; SQLite's own default is synchronous=FULL)."""
        self.path = directory / "langgraph.db"
        self._stack = AsyncExitStack()
        self._saver = await self._stack.enter_async_context(AsyncSqliteSaver.from_conn_string(str(self.path)))
        await self._saver.setup()
        builder = StateGraph(Tokens)
        builder.add_node("token", token_node)
        builder.add_edge(START, "token")
        builder.add_conditional_edges("token", after_token, ["token", END])
        self._graph: Any = builder.compile(checkpointer=self._saver)
        talk = StateGraph(Talk)
        talk.add_node("reply", reply_node)
        talk.add_edge(START, "reply")
        talk.add_edge("reply", END)
        self._talk: Any = talk.compile(checkpointer=self._saver)
        self._ids = count()

    async def run(self, steps: int) -> list[str]:
        """One thread of the graph."""
        config = {"configurable": {"thread_id": f"run-{next(self._ids)}"}, "recursion_limit": steps + 5}
        result = await self._graph.ainvoke({"steps": steps, "tokens": []}, config, durability="sync")
        return list(result["tokens"])

    async def turn(self, message: str) -> None:
        """One turn of the one session."""
        config = {"configurable": {"thread_id": "session"}}
        await self._talk.ainvoke({"messages": [message]}, config, durability="sync")

    async def teardown(self) -> None:
        """Close the saver."""
        await self._stack.aclose()
