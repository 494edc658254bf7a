"""Ports: small Protocols through which everything outside the process is reached."""

from perdure.ports.clock import Clock
from perdure.ports.entropy import Entropy
from perdure.ports.judge import JudgeAnswer, JudgeLink
from perdure.ports.models import Answer, Upstreams
from perdure.ports.sandbox import Door, ProgramWalls, Sandboxes, WalledProgram, Walls
from perdure.ports.secrets import Secrets
from perdure.ports.store import Store, Transaction
from perdure.ports.telemetry import NullTelemetry, Telemetry
from perdure.ports.tools import Probe, Tool, Toolset, Undo

__all__ = [
    "Answer",
    "Clock",
    "Door",
    "Entropy",
    "JudgeAnswer",
    "JudgeLink",
    "NullTelemetry",
    "Probe",
    "ProgramWalls",
    "Sandboxes",
    "Secrets",
    "Store",
    "Telemetry",
    "Tool",
    "Toolset",
    "Transaction",
    "Undo",
    "Upstreams",
    "WalledProgram",
    "Walls",
]
