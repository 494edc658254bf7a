"""Walls around code: sandboxes, each used once, behind the port ``Sandboxes``."""
