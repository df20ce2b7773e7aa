"""Builds CUDA kernels as C++ against simt.h, as they are or with words of their source replaced, and calls them."""

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lcs_kernels import _build

HERE = Path(__file__).parent
CUDA = _build.csrc_dir() / "cuda"
KERNELS = ("interpolate_prune_cuda.cu", "interpolate_prune_backward_cuda.cu")
FLAGS = ["-O1", "-std=c++20", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror"]
SANITIZED = "-fsanitize=thread"
STANDARD = ("algorithm", "climits", "cmath", "cstdint", "cstring", "functional", "string", "type_traits")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]  # in the order of lcs::DType

Edit = tuple[str, str]  # words that csrc/cuda holds once, and what takes their place
NO_CHANGE: Sequence[Edit] = ()


def compile_unit(source: Path, output: Path, cuda: Path, *flags: str, language: str = "c++") -> Path:
    includes = [f"-I{folder}" for folder in (_build.csrc_dir() / "include", HERE, cuda)]
    command = [*_build.find_compiler(), *FLAGS, "-Wno-unknown-pragmas", *includes, *flags, "-c", "-x", language]
    subprocess.run([*command, str(source), "-o", str(output)], check=True)
    return output


def standard_headers(folder: Path) -> Path:
    """What the kernels include of the standard library, parsed once for all builds: half of a compilation's time."""
    header, parsed = folder / "standard.h", folder / "standard.h.gch"
    if not parsed.exists():
        header.write_text("".join(f"#include <{name}>\n" for name in STANDARD))
        compile_unit(header, parsed, CUDA, SANITIZED, language="c++-header")
    return header


def build(folder: Path, edits: Sequence[Edit] = NO_CHANGE) -> ctypes.CDLL:
    """The kernels, edited; every other object is one that an earlier build left in the folder above."""
    folder.mkdir(exist_ok=True)
    texts = {path.name: path.read_text() for path in CUDA.iterdir()}
    edited = {_edit(texts, *edit) for edit in edits}
    for name, text in texts.items():
        (folder / name).write_text(text)
    host = folder.parent / "host.o"
    if not host.exists():
        compile_unit(HERE / "interpolate_prune_host.cpp", host, CUDA)
    objects = [host]
    for name in KERNELS:
        kept = folder.parent / f"{name}.o"
        if edits and kept.exists() and not any(file == name or f'"{file}"' in texts[name] for file in edited):
            objects.append(kept)
            continue
        target = folder / f"{name}.o" if edits else kept
        include = "-include", str(standard_headers(folder.parent))
        objects.append(compile_unit(folder / name, target, folder, SANITIZED, *include))
    output = folder / "kernels.so"
    link = [*_build.find_compiler(), "-shared", "-Wl,--no-undefined", *map(str, objects), "-o", str(output)]
    subprocess.run(link, check=True)
    library = ctypes.CDLL(str(output))
    library.prune.restype = library.prune_backward.restype = ctypes.c_char_p
    return library


def _edit(texts: dict[str, str], words: str, others: str) -> str:
    """Replaces `words` in the one file that holds them, once; returns its name."""
    counts = {name: text.count(words) for name, text in texts.items() if words in text}
    assert list(counts.values()) == [1], f"csrc/cuda holds {words!r} so often: {counts}"
    (name,) = counts
    texts[name] = texts[name].replace(words, others)
    return name


class SimtError(AssertionError):
    """A race, a deadlock, or another misuse of the device."""


def _array(kind, values) -> ctypes.Array:
    values = list(values)
    return (kind * max(len(values), 1))(*values)


def _pointers(tensors) -> ctypes.Array:
    return _array(ctypes.c_void_p, (None if t is None else t.data_ptr() for t in tensors))


def _sizes(tensors: Sequence[Tensor]) -> ctypes.Array:
    return _array(ctypes.c_int64, (t.numel() for t in tensors))


def _checked(report: bytes) -> None:
    if report:
        raise SimtError(report.decode())


def prune(library, w0s, w1s, alpha, keep, dtype=None, *, seed=0, resident=3) -> tuple[list[Tensor], list[Tensor]]:
    """As the op lcs::interpolate_prune_foreach, in the order of threads and blocks that `seed` gives."""
    dtype = dtype or w0s[0].dtype
    ws = [torch.empty(w.shape, dtype=dtype) for w in w0s]
    masks = [torch.empty((w.numel() + 31) // 32, dtype=torch.int32) for w in w0s]
    arguments = [_pointers(ts) for ts in (w0s, w1s or [None] * len(w0s), ws, masks)]
    counts = _array(ctypes.c_int64, keep.reshape(-1).tolist())
    types = [DTYPES.index(t) for t in (w0s[0].dtype, dtype)]
    level = (counts, int(keep.dim() == 0), ctypes.c_float(float(alpha)))
    _checked(library.prune(len(w0s), _sizes(w0s), *arguments, *level, *types, ctypes.c_uint64(seed), resident))
    return ws, masks


def prune_backward(library, grads, w0s, w1s, alpha, masks, line, dtype, *, seed=0):
    """As the op lcs::interpolate_prune_foreach_backward."""
    none = [None] * len(grads)
    grad_w0s = [torch.empty(g.shape, dtype=dtype) for g in grads]
    grad_w1s = [torch.empty_like(g) for g in grad_w0s] if line else []
    grad_alpha = torch.empty(()) if w0s else torch.empty(0)
    arguments = [_pointers(ts) for ts in (grads, w0s or none, w1s or none, masks, grad_w0s, grad_w1s or none)]
    to_alpha = ctypes.c_void_p(grad_alpha.data_ptr() if w0s else None)
    types = [DTYPES.index(t) for t in (dtype, grads[0].dtype)]
    level = (to_alpha, ctypes.c_float(float(alpha)))
    _checked(library.prune_backward(len(grads), _sizes(grads), *arguments, *level, *types, ctypes.c_uint64(seed)))
    return grad_w0s, grad_w1s, grad_alpha
