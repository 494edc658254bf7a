from perdure import Done, Run, agent, tool

stock = {"tea": 5}


@tool(effect="reversible")
def set_stock(item: str, count: int) -> int:
    """Sets how many of an item there are."""
    stock[item] = count
    return count


@set_stock.image_with
def seen(item: str, count: int) -> int:
    return stock[item]


@set_stock.undo_with
def put_back(done: Done) -> int:
    stock[done.arguments["item"]] = done.before
    return done.before


@tool
def refund(order: str, cents: int) -> str:
    """Pays money back."""
    return f"refunded {cents} for {order}"


@agent("shop", tools=[set_stock, refund], roles=["clerk"])
async def shop(run: Run, order: str, cents: int) -> str:
    """Takes a parcel back."""
    await run.act(set_stock, item="tea", count=6)
    return await run.act(refund, order=order, cents=cents)
