"""Settings from the environment: the only place that reads it."""

from __future__ import annotations

from collections.abc import Mapping

from perdure.core.limits import Settings

SETTING_PREFIX = "PERDURE_SETTING_"


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Settings from variables such as ``PERDURE_SETTING_CONCURRENCY``.

    Raises:
        DefinitionError: an unknown name or a value that does not fit.
    """
    found = {
        name.removeprefix(SETTING_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(SETTING_PREFIX)
    }
    return Settings.of(found)
