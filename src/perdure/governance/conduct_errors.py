"""Why rules of conduct cannot be used: one code each."""

from __future__ import annotations

from perdure.core.errors import DefinitionError, UsageError


class ConductInvalidError(DefinitionError):
    """A file of sequence rules cannot be used; ``facts`` has the rule and the field."""

    code = "conduct-invalid"


class ConductStateError(UsageError):
    """A kept state of sequence rules is damaged or of other rules; it is built anew from the run's history."""

    code = "conduct-state-invalid"
