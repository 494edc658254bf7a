"""The only room that joins the others: opens a data directory, picks adapters, hands out run handles."""

from perdure.runtime.handle import Answerable, RunHandle
from perdure.runtime.runtime import Runtime

__all__ = ["Answerable", "RunHandle", "Runtime"]
