"""Rival: Temporal with local activities. Not durable per step: see the README before comparing."""

from __future__ import annotations

from bench.subjects import temporal


class Bench(temporal.Bench):
    """The same server and worker, the other workflow."""

    workflow = temporal.Local
