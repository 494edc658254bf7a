"""Engines: what drives runs durably."""
