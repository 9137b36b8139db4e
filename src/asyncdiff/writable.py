"""Whether a file can be written, looked at before anything is computed for it."""

import os
from pathlib import Path


def why_not_writable(path: Path) -> str | None:
    """A sentence that says why a file cannot be written; None where it can."""
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"{path}: the folder {path.parent} does not exist"
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        return f"{path} cannot be written"
    return None
