"""Isolated agents: an app's agent code in worker processes that hold no database, keys or secrets."""
