"""Model agents on Pydantic AI: every model request and tool call is a durable call (needs ``perdure[pydantic-ai]``)."""
