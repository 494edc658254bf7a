"""The Temporal engine: runs of the same agents as workflows of a Temporal cluster. Needs ``perdure[temporal]``."""

try:
    import temporalio as _temporalio  # noqa: F401 - only to say what is missing
except ImportError as error:
    raise ImportError("the Temporal engine needs an extra: `pip install 'perdure[temporal]'`") from error

from perdure.engines.temporal.devserver import dev_server
from perdure.engines.temporal.engine import TemporalEngine

__all__ = ["TemporalEngine", "dev_server"]
