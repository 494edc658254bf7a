"""Adapters to the tools of the world, behind ``ports.tools``."""
