"""Benchmarks: one workload on Perdure, its rivals and two bare baselines. Not part of the package."""
