"""The MCP face and the MCP client, against real servers, real processes and the official conformance suite."""
