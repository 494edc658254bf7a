"""Ports: small Protocols through which everything outside the process is reached."""

from perdure.ports.clock import Clock
from perdure.ports.entropy import Entropy
from perdure.ports.store import Store, Transaction
from perdure.ports.telemetry import NullTelemetry, Telemetry

__all__ = ["Clock", "Entropy", "NullTelemetry", "Store", "Telemetry", "Transaction"]
