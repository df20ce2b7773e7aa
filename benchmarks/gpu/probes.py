"""The probe kernels, built by nvcc on the machine at hand, and the data that they decode."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from lcs_kernels import _build

from . import timing

HERE = Path(__file__).parent
RUNS, POSITIONS = 128, 4096  # of a tile of delta_kernel
SPAN = POSITIONS // RUNS  # positions that a run goes over here
NEST_THREADS = 256


class CudnnNotFoundError(RuntimeError):
    """The headers or the library are not in this Python's packages."""


def compiled(name: str, *flags: str) -> ctypes.CDLL:
    """A source of this folder as a library. Raises CalledProcessError, with the compiler's words, where it fails."""
    output = Path(tempfile.mkdtemp(prefix="lcs-probe-")) / f"{Path(name).stem}.so"
    common = ["-O3", "-std=c++20", "-Xcompiler=-fPIC", "-shared", "-cudart=static", f"-I{_build.csrc_dir() / 'cuda'}"]
    command = [*_build.find_nvcc(), *common, *flags, str(HERE / name), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} does not compile: {done.stderr}")
    return ctypes.CDLL(str(output))


def kernels(architecture: str) -> ctypes.CDLL:
    """`architecture`: of nvcc, as 90a."""
    return compiled("probes.cu", f"-gencode=arch=compute_{architecture},code=sm_{architecture}")


def cudnn(folder: Path | None = None) -> ctypes.CDLL:
    """Against the cuDNN that came with torch."""
    spec = None if folder else find_spec("nvidia.cudnn")
    if folder is None and (spec is None or not spec.submodule_search_locations):
        raise CudnnNotFoundError("there is no package nvidia.cudnn")
    folder = folder or Path(next(iter(spec.submodule_search_locations)))
    library = folder / "lib" / "libcudnn.so.9"
    if not library.exists() or not (folder / "include" / "cudnn.h").exists():
        raise CudnnNotFoundError(f"{folder} holds no libcudnn.so.9 or no cudnn.h")
    found = compiled("cudnn_filter.cpp", f"-I{folder / 'include'}", f"-Xlinker={library}")
    found.convolve_plan.restype = ctypes.c_void_p
    found.convolve_error.restype = ctypes.c_char_p
    found.convolve_workspace.restype = ctypes.c_int64
    return found


def address(t: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(t.data_ptr())


def stream() -> ctypes.c_void_p:
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


def must(code: int) -> None:
    if code:
        raise RuntimeError(f"a probe kernel does not start: CUDA error {code}")


class Deltas:
    """Tiles with `values` weights in each run, at random places; `sum`: of their words, what the kernel must find."""

    def __init__(self, values: int, tiles: int):
        device, parts = timing.DEVICE, max(values // 8, 1)
        each = min(values, 8)
        places = torch.rand(tiles * RUNS, SPAN, device=device).argsort(1)[:, :values].sort(1).values
        steps = places.diff(dim=1).clamp(max=15)
        within = torch.cat([places[:, :1], places[:, :1] + steps.cumsum(1)], 1)
        del places
        position = within.view(tiles, RUNS, values) + torch.arange(RUNS, device=device)[:, None] * SPAN
        weights = torch.randint(0, 1 << 16, position.shape, dtype=torch.int32, device=device)
        self.sum = int((weights.long() << (position % 2 * 16)).sum()) % (1 << 32)
        self.starts = position[..., 0].to(torch.int16)
        nibbles = torch.cat([steps.view(tiles, RUNS, values - 1), steps.new_zeros(tiles, RUNS, 1)], 2)
        nibbles = nibbles.view(tiles, RUNS, parts, each) << (torch.arange(each, device=device) * 4)
        self.distances = nibbles.sum(3).transpose(1, 2).to(torch.int32 if values >= 8 else torch.int16).contiguous()
        self.weights = weights.view(tiles, RUNS, parts, each).transpose(1, 2).to(torch.int16).contiguous()
        self.values, self.tiles = values, tiles

    @property
    def bytes(self) -> int:
        return self.weights.nbytes + self.distances.nbytes + self.starts.nbytes

    def run(self, library: ctypes.CDLL, sums: Tensor, blocks: int, on: ctypes.c_void_p) -> None:
        """`sums`: int32, RUNS a block."""
        parts = address(self.weights), address(self.distances), address(self.starts)
        must(library.probe_delta(self.values, *parts, ctypes.c_int64(self.tiles), address(sums), blocks, on))


class Nest:
    """Bit chunks of so many random weights of `bits`, 2, 4 or 8, as unsigned bytes; `sum`: of these."""

    ONES = (5, 4)  # the bit that a chunk of one bit holds
    TWOS = (6, 2, 0)  # the lower bit of a chunk of two

    def __init__(self, bits: int, weights: int):
        twos, ones = {8: (3, 2), 4: (1, 2), 2: (1, 0)}[bits]
        self.units = weights // 128
        sizes = [weights // 4] * twos, [weights // 8] * ones
        self.twos, self.ones = (
            [torch.randint(0, 256, (n,), dtype=torch.uint8, device=timing.DEVICE) for n in part] for part in sizes
        )
        self.sum = sum(
            int((t >> s & 3).sum()) << at for t, at in zip(self.twos, self.TWOS, strict=False) for s in (0, 2, 4, 6)
        )
        self.sum += sum(
            int((t >> s & 1).sum()) << at for t, at in zip(self.ones, self.ONES, strict=False) for s in range(8)
        )
        self.bits = bits

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in (*self.twos, *self.ones))

    def run(self, library: ctypes.CDLL, sums: Tensor, blocks: int, on: ctypes.c_void_p) -> None:
        """`sums`: int32, NEST_THREADS a block."""
        two, one = ([address(t) for t in part] for part in (self.twos, self.ones))
        two, one = two + [None] * (3 - len(two)), one + [None] * (2 - len(one))
        order = two[0], one[0], one[1], two[1], two[2]
        must(library.probe_nest(self.bits, *order, ctypes.c_int64(self.units), address(sums), blocks, on))


def total(sums: Tensor) -> int:
    """Of unsigned 32-bit sums in an int32 tensor, as the sum of all is kept: below 2^32."""
    return int((sums.long() & 0xFFFFFFFF).sum()) % (1 << 32)


def architecture() -> str:
    """Of this card, as nvcc names it; with what only this one has where it is Hopper."""
    gpu = torch.cuda.get_device_properties(0)
    return f"{gpu.major}{gpu.minor}" + ("a" if gpu.major == 9 else "")


def multiprocessors() -> int:
    return torch.cuda.get_device_properties(0).multi_processor_count
