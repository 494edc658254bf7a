"""The embedded engine: dispatcher, leases, timers and steps in one asyncio process, over a ``Store``."""

from perdure.engines.embedded.engine import EmbeddedEngine

__all__ = ["EmbeddedEngine"]
