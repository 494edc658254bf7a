"""Hosted programs with real processes and real HTTP: kills at every boundary, retries, budgets, bad input, secrets."""
