"""Conformance suites: what every adapter of a port must do. One module per port, and one for engines.

A suite is a tuple ``CASES`` of functions. Give each a fresh adapter; a broken promise raises ``AssertionError`` with
what was expected and found. The cases work without pytest, so that an adapter outside of this project can use them too.
"""
