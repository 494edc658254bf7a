"""The private key of the person at this terminal. It stays in one file of theirs; a runtime never reads it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from joserfc.jwk import OKPKey

from perdure.core.errors import UsageError
from perdure.governance.keys import SEED_BYTES, private_key, read_private, write_private


def default_path() -> Path:
    """Where the key of this user is: ``$PERDURE_KEY``, else ``perdure/approver.jwk`` in the user's configuration folder."""
    given = os.environ.get("PERDURE_KEY")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "perdure" / "approver.jwk"


def create(path: Path) -> OKPKey:
    """Make a key pair; the file is readable by its owner only.

    Raises:
        UsageError: there is one already, or the file cannot be written.
    """
    key = private_key(os.urandom(SEED_BYTES))
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise UsageError(f"there is a key in `{path}` already; give another file with `--key`") from error
    except OSError as error:
        raise UsageError(f"`{path}` cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "w") as file:
        file.write(write_private(key))
        file.flush()
        os.fsync(file.fileno())
    return key


def load(path: Path) -> OKPKey:
    """Read the key.

    Raises:
        UsageError: there is none, others can read it, or it cannot be read.
    """
    try:
        status = path.stat()
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"there is no key in `{path}`; make one with `perdure keys new`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the key in `{path}` cannot be read: {error}") from error
    if os.name == "posix" and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(f"others can read the key in `{path}`; `chmod 600` it, or better make a new one")
    return read_private(text)
