"""Policies that cannot be used: nothing runs until they can."""

from __future__ import annotations

from perdure.core.errors import DefinitionError


class PolicyInvalidError(DefinitionError):
    """A policy cannot be parsed, does not fit the tools, or has the id of another."""

    code = "policy-invalid"
