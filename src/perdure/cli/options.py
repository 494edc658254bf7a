"""Options that many commands share, described once."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from perdure.core.workers import Isolation

Data = Annotated[
    Path,
    Parameter(
        name="--data",
        help="The data directory (default: $PERDURE_DATA, else ./data).",
        env_var="PERDURE_DATA",
    ),
]
Json = Annotated[bool, Parameter(name="--json", help="Print JSON for programs, one object per line.")]
Otel = Annotated[bool, Parameter(name="--otel", help="Send spans and counts to OpenTelemetry.")]
After = Annotated[int, Parameter(name="--after", help="Begin after this entry.")]
Config = Annotated[
    Path | None,
    Parameter(name="--config", help="Upstreams and toolsets (default: perdure.toml in this folder)."),
]
Isolated = Annotated[
    Isolation | None,
    Parameter(
        name="--isolation",
        help="Where agent code runs: `none` (this process), `process` (worker processes) or `namespace` (those behind a wall); default: `[workers]` of the configuration.",
    ),
]
DATA = Path("data")
