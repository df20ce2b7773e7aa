"""How csrc/ becomes a shared library: the source list, the flags, the compiler, the commands.

setup.py, the JIT and CMake all start here. Only the standard library is imported; torch is looked up, never imported.
"""

import filecmp
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Event

VERSION = "0.1.0"
CXX_FLAGS = [
    "-O3",
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",  # one rounding on every instruction set: masks must not differ
    "-DTORCH_TARGET_VERSION=0x020a000000000000",  # the stable ABI of torch 2.10 and later
]
LINK_FLAGS = ["-shared", "-Wl,--as-needed"]
ARCHITECTURES = ["80", "86", "89", "90a", "100"]  # of NVIDIA's GPUs; what is newer compiles the last one's PTX
NVCC_FLAGS = [
    "-O3",
    "-std=c++20",
    "--fmad=false",  # as -ffp-contract=off
    "--threads=0",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    *(f"-gencode=arch=compute_{name},code=sm_{name}" for name in ARCHITECTURES),
    f"-gencode=arch=compute_{ARCHITECTURES[-1]},code=compute_{ARCHITECTURES[-1]}",
]
SOURCE_SUFFIXES = (".cpp", ".cu")
HEADER_SUFFIXES = (".h", ".inl", ".cuh")
BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
MACHINES = "x86_64", "AMD64"  # whose instruction sets the kernels are written for
REPORT_SECONDS = 5  # between two lines of progress
POLL_SECONDS = 0.2  # between two looks at whether a compiler should end


class CompilerNotFoundError(RuntimeError):
    """No C++ compiler on this machine, or $CXX is not a command."""


class NvccNotFoundError(CompilerNotFoundError):
    """No CUDA compiler on this machine, or $NVCC is not a command."""


class CompileError(RuntimeError):
    """The compiler or linker failed, or ran past its deadline; `log` holds the command and all that it printed."""

    def __init__(self, message: str, log: str):
        super().__init__(message)
        self.log = log


class OutOfTimeError(CompileError):
    """The deadline came first; what is compiled stays where it is."""


def bool_getenv(name: str) -> bool | None:
    """What the environment variable `name` says; None: nothing, as it is unset or empty. Raises ValueError."""
    value = os.environ.get(name, "")
    if value and value.lower() not in BOOLEANS:
        raise ValueError(f"{name}: {value!r} is neither yes nor no; use 1 (true, yes, on) or 0 (false, no, off)")
    return BOOLEANS[value.lower()] if value else None


def csrc_dir() -> Path:
    """The C++ sources: inside the package in a wheel, beside it in a checkout."""
    here = Path(__file__).resolve().parent
    return here / "csrc" if (here / "csrc").is_dir() else here.parent / "csrc"


def sources(csrc: Path, library: str = "_C") -> list[str]:
    """Names relative to `csrc` of what goes into `library`.

    "_C" holds the CPU ops of torch, "_C_cuda" the CUDA ops, "lcs_cpu" the kernels, "lcs_core" those on NumPy arrays.
    """
    names = (csrc / "sources.txt").read_text().split()
    return [name for name in names if library in _libraries(name)]


def _libraries(name: str) -> tuple[str, ...]:
    folder = name.partition("/")[0]
    if folder == "cuda" or name.endswith("_cuda_op.cpp"):
        return ("_C_cuda",)
    return {"core": ("lcs_core",), "torch": ("_C",)}.get(folder, ("_C", "lcs_core", "lcs_cpu"))


def find_binary(library: str = "_C") -> Path | None:
    """The ahead-of-time library `_C` or `_C_cuda` of this install, if it holds one."""
    path = Path(__file__).resolve().parent / f"{library}.so"
    return path if path.is_file() else None


def check_whole(library: Path) -> None:
    """Raises OSError where an ELF file is shorter than its segments: to load it would end the process."""
    with library.open("rb") as file:
        header = file.read(64)
        if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian
            return
        (offset,), (size, count) = struct.unpack_from("<Q", header, 32), struct.unpack_from("<HH", header, 54)
        file.seek(offset)
        table, length = file.read(size * count), os.fstat(file.fileno()).st_size
    needed = offset + size * count
    if len(table) == size * count:
        starts_and_sizes = (struct.unpack_from("<Q16xQ", table, at + 8) for at in range(0, len(table), size))
        needed = max([needed, *(start + filled for start, filled in starts_and_sizes)])
    if length < needed:
        raise OSError(f"it is cut short, {length:,} bytes of at least {needed:,}")


def find_compiler() -> list[str]:
    """The C++ compiler's command: $CXX, else the first of c++, g++, clang++ on PATH; none on other machines."""
    if platform.machine() not in MACHINES:
        raise CompilerNotFoundError(f"the kernels are written for x86-64, and this machine is {platform.machine()}")
    asked = _command_in("CXX", CompilerNotFoundError)
    wanted = [asked] if asked else [["c++"], ["g++"], ["clang++"]]
    for command in wanted:
        if path := shutil.which(command[0]):
            return [path, *command[1:]]
    raise CompilerNotFoundError(f"no C++ compiler found (tried {', '.join(c[0] for c in wanted)} on PATH)")


def _command_in(name: str, error: type[CompilerNotFoundError]) -> list[str]:
    """The command in the environment variable `name`, split into words; none where it is unset or empty."""
    value = os.environ.get(name, "")
    try:
        words = shlex.split(value)
    except ValueError as reason:
        raise error(f"{name}={value!r} is not a command ({reason}); name a compiler there, or unset it") from None
    if value and not words:
        raise error(f"{name}={value!r} names no compiler; name one there, or unset it")
    return words


def find_nvcc() -> list[str]:
    """The CUDA compiler's command: $NVCC, else nvcc on PATH, else that of $CUDA_HOME or /usr/local/cuda."""
    asked = _command_in("NVCC", NvccNotFoundError)
    installed = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda") / "bin" / "nvcc"
    wanted = [asked] if asked else [["nvcc"], [str(installed)]]
    for command in wanted:
        if path := shutil.which(command[0]):
            return [path, *command[1:]]
    raise NvccNotFoundError(f"no CUDA compiler found (tried {', '.join(c[0] for c in wanted)})")


def torch_dir() -> Path:
    """The folder of the installed torch package."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("torch is not installed in this environment; install torch>=2.10", name="torch")
    return Path(spec.origin).parent


def pybind11_dir() -> Path:
    """The folder of the installed pybind11 package."""
    spec = find_spec("pybind11")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "pybind11 is not installed in this environment: pip install pybind11", name="pybind11"
        )
    return Path(spec.origin).parent


def python_include() -> Path:
    """The folder of this Python's C headers."""
    folder = Path(sysconfig.get_path("include"))
    if not (folder / "Python.h").is_file():
        raise FileNotFoundError(f"no {folder / 'Python.h'}: install this Python's headers (python3-dev, python3-devel)")
    return folder


def build_key(csrc: Path, library: str = "_C") -> str:
    """Names a build by all that shapes it: package version, flags, machine, compiler, torch, every file of `csrc`.

    The compiler counts by the path, size and time of its executable, so that a warm start runs no compiler.
    """
    files = _contents(csrc, SOURCE_SUFFIXES + HEADER_SUFFIXES)
    return _digest(_environment(library == "_C_cuda"), _included("torch"), *files, *sources(csrc, library))


def compile_library(
    output: Path,
    objects: Path,
    csrc: Path | None = None,
    deadline: float | None = None,
    report: Callable[[str], None] = lambda line: None,
    library: str = "_C",
    warn: bool = False,
) -> None:
    """Compiles the sources of `library` in parallel and links them into `output`; "lcs_cpu" becomes an archive.

    Objects land in `objects`, named by what they were made from, and are used again, also by the other libraries.
    `deadline` is in seconds of `time.monotonic()`; `warn`: warnings are errors, which changes no object. No compiler
    outlives the call. Raises CompilerNotFoundError or CompileError.
    """
    csrc = csrc or csrc_dir()
    compiler = find_compiler()
    objects.mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    units = units_of(csrc, library)
    targets = {unit: objects / f"{unit}.{key}.o" for unit, key in _object_keys(csrc, units).items()}
    stale = [unit for unit, target in targets.items() if not _is_made(target)]
    report(f"compiling {len(stale)} of {len(targets)} units")
    _each(
        lambda unit, stop: compile_object(compiler, csrc, units[unit], targets[unit], deadline, warn, stop),
        stale,
        lambda left: report(f"{len(targets) - left} of {len(targets)} units"),
    )
    built = list(map(str, targets.values()))
    if library == "lcs_cpu":
        return _archive(built, output)
    if library == "_C_cuda":
        return _produce([*_cuda_linker(compiler), *built], output, deadline)
    _produce([*compiler, *built, *LINK_FLAGS, *_link_flags(library)], output, deadline)


def _is_made(target: Path) -> bool:
    """An object is renamed into place when it is whole, but one of no bytes may be left by a loss of power."""
    return target.exists() and target.stat().st_size > 0


def _archive(objects: list[str], output: Path) -> None:
    """Leaves an archive that holds just that as it is, so that nothing is linked again."""
    partial = output.with_name(f"{output.name}.partial")
    partial.unlink(missing_ok=True)
    subprocess.run(["ar", "rcs", str(partial), *objects], check=True)
    if output.exists() and filecmp.cmp(partial, output, shallow=False):
        return partial.unlink()
    os.replace(partial, output)


def _link_flags(library: str) -> list[str]:
    if library == "lcs_core":
        return ["-pthread"]  # Python's own symbols come from the process
    return ["-Wl,--no-undefined", f"-L{torch_dir() / 'lib'}", "-ltorch_cpu"]


def _cuda_linker(compiler: list[str]) -> list[str]:
    """CUDA's runtime is linked in whole: torch's own copy may be of another version."""
    flags = ["-shared", "-cudart=static", "-Xlinker=--as-needed,--no-undefined,--exclude-libs=ALL"]
    return [*find_nvcc(), f"-ccbin={compiler[0]}", *flags, f"-L{torch_dir() / 'lib'}", "-ltorch_cpu", "-ldl"]


def units_of(csrc: Path, library: str = "_C") -> dict[str, list[str]]:
    """By name, the sources that one run of the compiler takes, the longest run first: all of torch/, else one file.

    Torch's headers take far longer to compile than the files that include them.
    """
    names = sources(csrc, library)
    bindings = [name for name in names if name.startswith("torch/")]
    alone = {Path(name).stem: [name] for name in names if name not in bindings}
    return {"torch": bindings, **alone} if bindings else alone


def compile_object(
    compiler: list[str],
    csrc: Path,
    names: list[str],
    output: Path,
    deadline: float | None = None,
    warn: bool = False,
    stop: Event | None = None,
) -> None:
    """Compiles `names`, of one folder, as one unit; only torch/ sees torch's headers, only core/ pybind11's.

    `compiler` is C++'s, which nvcc calls for cuda/; it is killed when another thread sets `stop`.
    """
    includes = [f"-I{csrc / 'include'}"]
    if names[0].startswith("cuda/"):
        (name,) = names
        command = [*find_nvcc(), f"-ccbin={compiler[0]}", *NVCC_FLAGS, *includes]
        return _produce([*command, "-c", str(csrc / name)], output, deadline, stop=stop)
    shown = [f"-fmacro-prefix-map={csrc}=csrc"]  # errors say where they come from, not where that was built
    for name, folder in _system_includes(names[0].partition("/")[0]).items():
        includes += ["-isystem", str(folder)]
        shown += [f"-ffile-prefix-map={path}={name}" for path in sorted({str(folder), str(folder.resolve())})]
    unit = "".join(f'#include "{csrc / name}"\n' for name in names)
    checks = warnings(names[0]) if warn else []
    command = [*compiler, *CXX_FLAGS, *shown, *checks, *includes, "-c", "-x", "c++", "-"]
    _produce(command, output, deadline, unit, stop)


def warnings(name: str) -> list[str]:
    """The flags that make them errors. gcc 12 calls the undefined lanes of its own AVX-512 header uninitialized.

    clang, which knows no -Wmaybe-uninitialized, would warn of that.
    """
    flags = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-warning-option", "-Wno-maybe-uninitialized"]
    return [*flags, "-Wno-uninitialized"] if re.search(r"_(avx512|vnni|amx)\.cpp$", name) else flags


def _system_includes(folder: str) -> dict[str, Path]:
    """What the files of csrc/`folder` may include beside the standard library, by its name in messages of a library."""
    if folder == "torch":
        return {"torch/include": torch_dir() / "include"}
    if folder == "core":
        return {"pybind11/include": pybind11_dir() / "include", "python": python_include()}
    return {}


def job_count() -> int:
    """Compilers to run at once: $MAX_JOBS, else the cores that this process may use."""
    value = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"MAX_JOBS: {value!r} is not a number of compilers, 1 or more")
    return int(value)


def _produce(
    command: list[str], output: Path, deadline: float | None, text: str = "", stop: Event | None = None
) -> None:
    """Runs `command` -o `output` on the standard input `text`; the output appears only when it is complete."""
    partial = output.with_name(f"{output.name}.{os.getpid()}.partial")
    command = [*command, "-o", str(partial)]
    log = f"$ {shlex.join(command)}\n"
    try:
        code, printed = _run(command, text, deadline, stop)
        if code != 0:
            raise CompileError(_first_errors(output.name, printed), log + printed)
        if not partial.exists():
            raise CompileError(f"{output.name}: the compiler {command[0]} ended well but wrote no file", log + printed)
        os.replace(partial, output)
    except subprocess.TimeoutExpired:
        raise OutOfTimeError(f"{output.name}: the compiler ran out of time", log) from None
    finally:
        partial.unlink(missing_ok=True)


def _run(command: list[str], text: str, deadline: float | None, stop: Event | None) -> tuple[int, str]:
    """The exit code of `command` and what it printed. Raises subprocess.TimeoutExpired at the deadline or on `stop`.

    It has a session of its own, so that what it starts can be killed with it.
    """
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
    except OSError as error:
        raise CompileError(f"cannot run the compiler {command[0]}: {error.strerror}", shlex.join(command)) from None
    with process:
        try:
            return _wait(process, text, deadline, stop)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise


def _wait(process: subprocess.Popen, text: str, deadline: float | None, stop: Event | None) -> tuple[int, str]:
    unsent: str | None = text
    while True:
        left = float("inf") if deadline is None else deadline - time.monotonic()
        try:
            printed, _ = process.communicate(unsent, timeout=max(min(left, POLL_SECONDS), 0.001))
            return process.returncode, printed
        except subprocess.TimeoutExpired:
            unsent = None  # the first call has it and goes on
            if left <= POLL_SECONDS or (stop and stop.is_set()):
                raise


def _first_errors(name: str, output: str, limit: int = 5) -> str:
    lines = output.splitlines()
    errors = [line for line in lines if "error" in line or "undefined reference" in line] or lines
    return "\n".join([f"{name} did not compile:", *errors[:limit]])


def _each(function: Callable, items: list, report: Callable[[int], None]) -> None:
    """Calls `function` on all items, and an event to stop at, in parallel; reports how many are left now and then.

    The first error stops the items that have not begun; an interrupt stops all.
    """
    stop = Event()
    with ThreadPoolExecutor(job_count()) as pool:
        waiting = {pool.submit(function, item, stop) for item in items}
        try:
            while waiting:
                done, waiting = wait(waiting, REPORT_SECONDS, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if waiting:
                    report(len(waiting))
        except CompileError:
            raise
        except BaseException:
            stop.set()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _object_keys(csrc: Path, units: dict[str, list[str]]) -> dict[str, str]:
    """For each unit, what names its object: the environment, all headers, its own text."""
    headers = _digest(*_contents(csrc, HEADER_SUFFIXES))
    keys = {}
    for unit, names in units.items():
        folder = names[0].partition("/")[0]
        texts = ((csrc / name).read_bytes() for name in names)
        keys[unit] = _digest(_environment(folder == "cuda"), headers, _included(folder), *texts)
    return keys


def _included(folder: str) -> str:
    """The version of what the files of csrc/`folder` include, and its names there."""
    names = "".join(_system_includes(folder))
    if folder == "torch":
        return (torch_dir() / "version.py").read_text() + names
    if folder == "core":
        return (pybind11_dir() / "_version.py").read_text() + sysconfig.get_config_var("EXT_SUFFIX") + names
    return ""


def _contents(csrc: Path, suffixes: tuple[str, ...]) -> Iterator[str | bytes]:
    for path in sorted(csrc.rglob("*")):
        if path.suffix in suffixes:
            yield str(path.relative_to(csrc))
            yield path.read_bytes()


def _environment(cuda: bool = False) -> str:
    flags = [VERSION, CXX_FLAGS, LINK_FLAGS, platform.machine(), _identity(find_compiler())]
    return repr([*flags, NVCC_FLAGS, _identity(find_nvcc())] if cuda else flags)


def _identity(compiler: list[str]) -> list[str]:
    executable = Path(compiler[0]).resolve()
    stat = executable.stat()
    return [*compiler, str(executable), str(stat.st_size), str(stat.st_mtime_ns)]


def _digest(*parts: str | bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:24]


if __name__ == "__main__" and sys.argv[1:] == ["flags"]:
    print(";".join(CXX_FLAGS))

if __name__ == "__main__" and sys.argv[1:] in (["cpu"], ["cuda"]):
    here, name = Path(__file__).resolve().parent, "_C_cuda" if sys.argv[1] == "cuda" else "_C"
    compile_library(here / f"{name}.so", here.parent / "build" / "objects", report=print, library=name)

if __name__ == "__main__" and sys.argv[1:2] == ["library"]:  # for CMake: a library's name and where to put it
    objects = Path(__file__).resolve().parent.parent / "build" / "objects"
    compile_library(Path(sys.argv[3]), objects, report=print, library=sys.argv[2], warn=True)
