"""Result files: whether one can be written, before long work, and writing it whole."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path


class ResultError(ValueError):
    """A result file cannot be written or read; the message names it and says what to do."""


def check_writable(path: Path) -> None:
    """Makes the folder of `path`. Raises ResultError where `write_json` could not put a file there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ResultError(f"{path}: cannot be written: {error.strerror}; name another file or folder") from error


def write_json(path: Path, content: dict) -> None:
    """Puts `content` at `path`, whose folder there is, so that a crash leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)
