"""The gateway: the only way out. Every model request and tool call passes its gates, is journaled, metered, dispatched once."""
