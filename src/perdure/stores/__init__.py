"""Stores: adapters of the ``Store`` port."""
