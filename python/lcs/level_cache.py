"""The levels of a frozen network that are held in memory: least recently used first out, and one build per level."""

import ctypes
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

_UNTRIMMED = 64 << 20  # bytes of dropped values that the C library may keep


class Sized(Protocol):
    nbytes: int


Value = TypeVar("Value", bound=Sized)


class LevelCache(Generic[Value]):
    """Immutable values by key, at most `most` and `limit` bytes of them, but always the one used last.

    A value that is dropped lives on for as long as a call still holds it; its memory goes back to the system, not at
    once but before much has been dropped. Thread safe: a value is built outside the lock, by the first thread that
    wants it, and others that want it meanwhile wait for that build alone.
    """

    def __init__(self, limit: int, most: int) -> None:
        self.limit, self.most = limit, most
        self.hits = self.builds = self.evictions = 0
        self._warned = False
        self._untrimmed = 0
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._building: dict[Hashable, Future] = {}

    def get(self, key: Hashable, build: Callable[[], Value]) -> Value:
        """The value of `key`, from `build` where it is not held. Raises what `build` raises."""
        while True:
            with self._lock:
                value = self._values.get(key)
                if value is not None:
                    self._values.move_to_end(key)
                    self.hits += 1
                    return value
                theirs = self._building.get(key)
                if theirs is None:
                    ours = self._building[key] = Future()
            if theirs is None:
                return self._build(key, build, ours)
            value = theirs.result()
            if value is not None:
                return value  # else the other thread's build failed: try it here, for an error of our own

    def held(self, key: Hashable) -> Value | None:
        """The value of `key`, where it is held; `use` says that it is used."""
        return self._values.get(key)

    def use(self, key: Hashable) -> None:
        """Counts what `held` has returned as `get` would."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            self.hits += 1

    def _build(self, key: Hashable, build: Callable[[], Value], done: Future) -> Value:
        value = None
        try:
            value = build()
        finally:
            with self._lock:
                del self._building[key]
                if value is not None:
                    self._values[key] = value
                    self.builds += 1
            done.set_result(value)
        self.settle()
        return value

    def settle(self) -> None:
        """Drops what is over the limits. Called again when a value has grown (by what is derived on first use)."""
        with self._lock:
            sizes = [value.nbytes for value in self._values.values()]
            total, alone = sum(sizes), len(sizes) == 1
            for size in sizes[:-1]:
                if total <= self.limit and len(self._values) <= self.most:
                    break
                self._values.popitem(last=False)
                self.evictions += 1
                total -= size
                self._untrimmed += size
            trim = self._untrimmed >= _UNTRIMMED
            self._untrimmed = 0 if trim else self._untrimmed
            warn = alone and 0 < self.limit < total and not self._warned
            self._warned = self._warned or warn
        if trim:
            _trim()
        if warn:
            warnings.warn(
                f"one level takes {total:,} bytes, more than cache_bytes={self.limit:,}: no second one is kept",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self._values)

    @property
    def nbytes(self) -> int:
        """Bytes of all values that are held."""
        with self._lock:
            return sum(value.nbytes for value in self._values.values())


def _trim() -> None:
    """Gives what the C library has free back to the system. glibc keeps it, and finds little room for a level's weights
    where those of others, of other sizes, have been: the process would grow with every level."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return  # another C library
    trim(ctypes.c_size_t(0))
