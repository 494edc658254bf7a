"""Models: the upstreams that answer model requests, and model agents on Pydantic AI (needs ``perdure[pydantic-ai]``)."""
