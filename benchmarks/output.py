"""Result files: whether one can be written, before long work, and writing it whole."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

SUFFIX = ".partial"


class ResultError(ValueError):
    """A result file cannot be written or read; the message names it and says what to do."""


def check_writable(path: Path) -> None:
    """Makes the folder of `path`. Raises ResultError where `write_json` could not put a file there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        if path.exists() and not path.is_file():
            raise OSError(None, "it is no regular file")
        tempfile.NamedTemporaryFile(dir=path.resolve().parent, prefix=f"{path.name}.", suffix=SUFFIX).close()
    except OSError as error:
        raise ResultError(f"{path}: cannot be written: {error.strerror}; name another file or folder") from error


def write_json(path: Path, content: dict) -> None:
    """Puts `content` at `path`, whose folder there is, so that a crash leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.resolve()  # a link stays one
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f"{path.name}.", suffix=SUFFIX, delete=False) as file:
        try:
            file.write(json.dumps(content, indent=1) + "\n")
            file.close()
            os.chmod(file.name, path.stat().st_mode & 0o777 if path.exists() else 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
