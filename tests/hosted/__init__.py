"""Unmodified programs of four frameworks, killed and started again, against a provider that never says the same twice."""
