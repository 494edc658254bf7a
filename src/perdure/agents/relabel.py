"""Declassification and endorsement: giving one value another label, which always takes a person."""

from __future__ import annotations

from perdure.agents.tool import tool


@tool(name="perdure.declassify", recovery="pure")
async def declassify(value: str | int | float, reason: str) -> str | int | float:
    """Ask for a confidential value to be released: once a person has signed, everyone may see it.

    Args:
        value: the whole value, as it stands; its parts stay confidential.
        reason: why, for whoever decides.
    """
    del reason
    return value


@tool(name="perdure.endorse", recovery="pure")
async def endorse(value: str | int | float, reason: str) -> str | int | float:
    """Ask for an untrusted value to be trusted: once a person has signed, it may decide who gets something.

    Args:
        value: the whole value, as it stands.
        reason: why, for whoever decides.
    """
    del reason
    return value
