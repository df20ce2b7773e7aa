"""Builds csrc/ on this machine when no binary is installed: once per content, then from a cache that processes share.

Layout: <cache>/jit/<key>/lcs_kernels.so with its .sha256 beside it; <cache>/jit/lock while building, and
<cache>/jit/objects, from which a build goes on that an earlier one did not end.
"""

import hashlib
import json
import math
import os
import socket
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

from . import _build
from .errors import LcsBuildError, LcsUnavailableError

LIBRARY = "lcs_kernels.so"
LONGEST = 1e6  # seconds, eleven days: the system's waits cannot be told much more
WITHOUT = {  # a library: what runs in its place, and how to ask for it
    "_C": "set LCS_REFERENCE=1 to run the slow PyTorch reference",
    "_C_cuda": "set LCS_CUDA_BACKEND=triton",
}
WAYS_OUT = {
    "_C": f"install a C++20 compiler (g++ 10 or later), or a wheel that holds the binary, or {WITHOUT['_C']}",
    "_C_cuda": f"install CUDA's compiler and a C++20 one, or {WITHOUT['_C_cuda']}",
}


def to_stderr(line: str) -> None:
    print(f"lcs: {line}", file=sys.stderr, flush=True)


def cache_dir() -> Path:
    """$LCS_CACHE, else ~/.cache/lcs-kernels."""
    if folder := os.environ.get("LCS_CACHE"):
        return Path(folder).expanduser()
    try:
        return Path("~/.cache/lcs-kernels").expanduser()
    except RuntimeError:  # neither HOME nor a known user: the home that container engines give such a one
        return Path("/.cache/lcs-kernels")


def build(progress: Callable[[str], None] = to_stderr, *, csrc: Path | None = None, name: str = "_C") -> Path:
    """The library `name` of `csrc` (default: the package's), from the cache if it is there and whole, else built.

    Safe to call from any number of processes: one builds, the others wait, at most $LCS_JIT_TIMEOUT seconds (600).
    Raises LcsUnavailableError where nothing can be built and LcsBuildError where the compiler fails or is too slow.
    """
    if _build.bool_getenv("LCS_DISABLE_JIT"):
        raise LcsUnavailableError(
            f"lcs_kernels: this install holds no {name} and LCS_DISABLE_JIT forbids to build one: unset it, "
            f"or install a wheel that holds the binary, or {WITHOUT[name]}"
        )
    csrc = csrc or _build.csrc_dir()
    try:
        key = _build.build_key(csrc, name)
    except _build.CompilerNotFoundError as error:
        raise LcsUnavailableError(f"lcs_kernels: this install holds no {name} and {error}: {WAYS_OUT[name]}") from None
    library = cache_dir() / "jit" / key / LIBRARY
    if _is_whole(library):
        return library
    library = _writable(cache_dir() / "jit") / key / LIBRARY
    deadline = time.monotonic() + _timeout()
    try:
        with _locked(library.parents[1], deadline, progress):
            if not _is_whole(library):
                _build_into(library, csrc, deadline, progress, name)
    except OSError as error:
        raise LcsUnavailableError(
            f"lcs_kernels: cannot build in the cache {library.parents[1]} ({error}): "
            f"make room there, or set LCS_CACHE to another folder, or {WITHOUT[name]}"
        ) from None
    return library


def _timeout() -> float:
    value = os.environ.get("LCS_JIT_TIMEOUT") or "600"
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if math.isnan(seconds):
        raise ValueError(f"LCS_JIT_TIMEOUT: {value!r} is not a number of seconds")
    return min(seconds, LONGEST)


def _is_whole(library: Path) -> bool:
    """True where the library is in a trusted cache and has the hash that its builder noted."""
    try:
        noted, content = _noted_hash(library).read_text(), library.read_bytes()
    except OSError:
        return False
    _refuse_untrusted(library.parents[1])
    return hashlib.sha256(content).hexdigest() == noted


def _noted_hash(library: Path) -> Path:
    return library.with_name(library.name + ".sha256")


def _refuse_untrusted(directory: Path) -> None:
    """Whoever can write here can run code as this user."""
    info = directory.stat()
    if info.st_uid not in (os.getuid(), 0) or info.st_mode & stat.S_IWOTH:
        raise LcsUnavailableError(
            f"lcs_kernels: refusing the cache {directory} (owner uid {info.st_uid}, {stat.filemode(info.st_mode)}): "
            "another user could put code there. Remove it, or set LCS_CACHE to a folder of your own"
        )


def _writable(preferred: Path) -> Path:
    """`preferred`, or with a warning a folder for temporary files where `preferred` cannot be written."""
    try:
        return _prepared(preferred)
    except OSError as error:
        spare = Path(tempfile.gettempdir()) / f"lcs-kernels-jit-{os.getuid()}"
        warnings.warn(f"lcs_kernels: cannot write the cache {preferred} ({error}); using {spare}", stacklevel=4)
    try:
        return _prepared(spare)
    except OSError as error:
        raise LcsUnavailableError(
            f"lcs_kernels: cannot write {preferred} nor {spare} ({error}); set LCS_CACHE to a writable folder"
        ) from None


def _prepared(directory: Path) -> Path:
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    _refuse_untrusted(directory)
    with tempfile.TemporaryFile(dir=directory):
        return directory


@contextmanager
def _locked(directory: Path, deadline: float, progress: Callable[[str], None], patience: float = 3) -> Iterator[None]:
    """Holds the cache's lock, which the kernel frees if the holder dies; says whom it waits for."""
    from filelock import FileLock, Timeout

    lock, holder = FileLock(directory / "lock"), directory / "holder.json"
    try:
        lock.acquire(timeout=max(min(patience, deadline - time.monotonic()), 0))
    except Timeout:
        progress(f"waiting for {_describe(holder)} to finish a build")
        try:
            lock.acquire(timeout=max(deadline - time.monotonic(), 0))
        except Timeout:
            raise LcsUnavailableError(
                f"lcs_kernels: {_describe(holder)} still holds {directory / 'lock'} after {_timeout():g} s: "
                "stop that process, or wait longer with LCS_JIT_TIMEOUT, or set LCS_CACHE to another folder"
            ) from None
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _describe(holder: Path) -> str:
    try:
        who = json.loads(holder.read_text())
        return f"process {who['pid']} on {who['host']} (since {who['since']})"
    except (OSError, ValueError):  # the holder is just beginning or ending
        return "another process"


def _build_into(library: Path, csrc: Path, deadline: float, progress: Callable[[str], None], name: str) -> None:
    """Builds in a folder beside and moves the result into place. The caller holds the lock, so older ones are dead."""
    directory, started = library.parents[1], time.monotonic()
    objects = directory / "objects"
    for leftover in directory.glob("tmp-*"):
        rmtree(leftover, ignore_errors=True)
    count = len(_build.sources(csrc, name))
    progress(f"first use: compiling {count} files, which can take some minutes; cached afterwards")
    with tempfile.TemporaryDirectory(prefix="tmp-", dir=directory, ignore_cleanup_errors=True) as scratch:
        built = Path(scratch) / LIBRARY
        try:
            _build.compile_library(built, objects, csrc, deadline, progress, name)
        except _build.OutOfTimeError as error:
            raise LcsBuildError(f"lcs_kernels: {error}: {_more_time()}, or {WITHOUT[name]}") from None
        except _build.CompileError as error:
            log = library.parent.with_suffix(".log")
            log.write_text(error.log)
            raise LcsBuildError(f"lcs_kernels: {error}\nThe whole log is {log}. Or {WAYS_OUT[name]}") from None
        _noted_hash(built).write_text(hashlib.sha256(built.read_bytes()).hexdigest())
        library.parent.mkdir(exist_ok=True)
        os.replace(_noted_hash(built), _noted_hash(library))
        os.replace(built, ready := library.with_suffix(".new"))
    rmtree(objects, ignore_errors=True)
    os.replace(ready, library)  # last: where it is found, nothing is left to clean up
    progress(f"compiled in {time.monotonic() - started:.0f} s: {library}")


def _more_time() -> str:
    return (
        f"LCS_JIT_TIMEOUT={_timeout():g} s with {_build.job_count()} compilers at once. What is compiled is kept: "
        "run it again to go on, if need be with a larger LCS_JIT_TIMEOUT, or a larger MAX_JOBS where cores are free"
    )
