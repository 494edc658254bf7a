"""Adapters to tools: HTTP, OpenAPI, SQL."""
