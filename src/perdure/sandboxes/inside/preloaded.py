"""The modules that are there already when a job comes: what short programs import most. Importing them takes far longer than a fork."""

PRELOADED = (
    "base64", "collections", "csv", "dataclasses", "datetime", "decimal", "functools", "hashlib", "io", "itertools", "json", "linecache",
    "math", "pathlib", "random", "re", "shutil", "statistics", "string", "subprocess", "tempfile", "textwrap", "threading", "time",
    "tokenize", "types", "typing",
)  # fmt: skip
