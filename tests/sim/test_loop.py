"""SimLoop runs ordinary asyncio code in virtual time, and its processes die without a word."""

import asyncio
import contextvars
import time

import pytest

from perdure.testing.loop import INCARNATION, DeadlockError, SimLoop


def _inside(name: str) -> contextvars.Context:
    context = contextvars.copy_context()
    context.run(INCARNATION.set, name)
    return context


def test_an_hour_passes_at_once() -> None:
    loop = SimLoop()
    begin = time.perf_counter()

    async def main() -> list[str]:
        queue: asyncio.Queue[str] = asyncio.Queue(1)

        async def put() -> None:
            for item in "abc":
                await asyncio.sleep(1_200)
                await queue.put(item)

        async with asyncio.TaskGroup() as group:
            group.create_task(put())
            got = [await queue.get() for _ in range(3)]
        assert await asyncio.gather(asyncio.sleep(1, "x"), asyncio.sleep(2, "y")) == ["x", "y"]
        return got

    assert loop.run_until_complete(main()) == ["a", "b", "c"]
    assert loop.time() == 3_602
    assert time.perf_counter() - begin < 5


def test_timeouts_fire_in_virtual_time() -> None:
    loop = SimLoop()

    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.sleep(3_600)
        async with asyncio.timeout(30):
            await asyncio.sleep(29)
        return loop.time()

    assert loop.run_until_complete(main()) == 59


def test_ready_callbacks_run_first_in_first_out() -> None:
    loop, seen = SimLoop(), []

    async def main() -> None:
        for number in range(5):
            loop.call_soon(seen.append, number)
            loop.call_later(1, seen.append, 10 + number)
        await asyncio.sleep(1)

    loop.run_until_complete(main())
    assert seen == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]


def test_a_killed_process_runs_no_finally() -> None:
    loop, seen = SimLoop(), []

    async def process() -> None:
        try:
            await asyncio.sleep(10)
            seen.append("woke")
        finally:
            seen.append("finally")

    async def main() -> None:
        loop.create_task(process(), context=_inside("p"))
        await asyncio.sleep(1)
        loop.kill("p")
        await asyncio.sleep(100)

    loop.run_until_complete(main())
    assert seen == []
    assert loop.is_dead("p")


def test_a_paused_process_goes_on_later_in_order() -> None:
    loop, seen = SimLoop(), []

    async def process() -> None:
        for _ in range(4):
            await asyncio.sleep(1)
            seen.append(loop.time())

    async def main() -> None:
        loop.create_task(process(), context=_inside("p"))
        await asyncio.sleep(1.5)
        loop.pause("p", 10)
        await asyncio.sleep(20)

    loop.run_until_complete(main())
    assert seen == [1, 11.5, 12.5, 13.5]


def test_tasks_inherit_their_process() -> None:
    loop, seen = SimLoop(), []

    async def child() -> None:
        seen.append(INCARNATION.get())

    async def process() -> None:
        await asyncio.gather(child(), child())

    async def main() -> None:
        await loop.create_task(process(), context=_inside("p"))
        seen.append(INCARNATION.get())

    loop.run_until_complete(main())
    assert seen == ["p", "p", None]


def test_a_deadlock_is_told() -> None:
    loop = SimLoop()

    async def main() -> None:
        await loop.create_future()

    with pytest.raises(DeadlockError):
        loop.run_until_complete(main())
    loop.dispose()


def test_threads_and_sockets_are_refused() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="threads"):
            await asyncio.to_thread(print)

    SimLoop().run_until_complete(main())
