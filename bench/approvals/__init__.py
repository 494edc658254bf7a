"""Attempts to get an action done that nobody has approved, on the libraries that offer approvals."""
