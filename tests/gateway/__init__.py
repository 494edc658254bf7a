"""The gateway: identity of calls, wire formats, and every path through it."""
