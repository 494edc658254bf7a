"""Tools for testing agents and adapters: simulated worlds, torture, conformance suites, doubles. Shipped to users."""
