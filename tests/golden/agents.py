"""The agents whose journals are kept. Never change what they do: add new ones beside them."""

from __future__ import annotations

from perdure import Run, ToolFlow, UsageError, agent, step, tool
from perdure.governance.keys import private_key


@step(name="golden-mark")
async def mark(label: str) -> str:
    return f"{label}!"


@step(name="golden-fail", retries=1, backoff=0.001)
async def fail() -> None:
    raise ValueError("always")


@agent("golden-child", version="1")
async def child(run: Run, text: str) -> str:
    return await run.step(mark, text)


@agent("golden", version="1")
async def golden(run: Run, texts: list[str]) -> dict[str, object]:
    marks = await run.gather(*(run.step(mark, text) for text in texts))
    try:
        await run.step(fail)
    except Exception as error:
        marks.append(type(error).__name__)
    await run.sleep(0.01)
    young = await run.spawn("golden-child", "c")
    count = await run.state.get("count", 0)
    await run.state.set("count", count + 1)
    early = await run.receive("early")
    asked = await run.ask("how many?", timeout=3600)
    patched = run.patched("golden-patch")
    late = await run.receive("late")  # here the kept journal ends
    return {
        "marks": marks,
        "child": await young.result(),
        "early": len(early.body) if early else None,
        "asked": asked,
        "patched": patched,
        "late": late.body if late else None,
        "random": run.random(),
    }


@tool(name="golden_look", effect="read")
async def look(what: str) -> str:
    return f"seen {what}"


@tool(name="golden_do")
async def do(what: str) -> dict[str, str]:
    return {"done": what}


@agent("golden-actor", version="1", tools=[look, do])
async def actor(run: Run) -> list[object]:
    seen = await run.act("golden_look", what="a")
    try:
        await run.act("golden_look", wrong=1)
    except UsageError as error:
        seen = f"{seen}, {error.code}"
    done = await run.act("golden_do", what="b")
    held = await run.act("golden_do", what="c")  # here the kept journal ends: the budget is used up
    return [seen, done, held]


AGENTS = [golden, child, actor]


@tool(name="golden_mail", effect="read")
async def mail() -> str:
    return "our account is golden-account-77"


@tool(name="golden_pay", flow=ToolFlow(sinks={"to": "recipient"}, untrusted="hold", roles=("finance",)))
async def pay(to: str) -> str:
    return f"paid {to}"


@agent("golden-governed", version="1", tools=[mail, pay])
async def governed(run: Run) -> list[object]:
    text = await run.act("golden_mail")
    return [
        text,
        await run.act("golden_pay", to="golden-account-77"),
    ]  # here the kept journal ends: it is held


GOVERNED = [governed]
KEY = private_key(bytes(range(32)))
