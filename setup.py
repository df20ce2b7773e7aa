"""What pyproject.toml cannot say: where the packages lie, and the compiled libraries lcs_kernels._C and lcs_core.

Each is built where what it needs is installed, and said loudly to be missing elsewhere; the JIT builds _C on first use.
LCS_BUILD=0 builds neither, LCS_BUILD=1 makes the absence of one an error. What an earlier build left goes nowhere.
"""

import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from setuptools import Extension, find_namespace_packages, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build as build_all
from setuptools.command.build_ext import build_ext
from setuptools.command.editable_wheel import editable_wheel

build = runpy.run_path("lcs_kernels/_build.py")
INSIDE = ["benchmarks", "csrc", "triton_kernels"]  # top-level folders of a checkout, installed inside lcs_kernels
TORCH, CORE = "lcs_kernels._C", "lcs_core"
NEEDS: dict[str, list[Callable]] = {
    TORCH: [build["find_compiler"], build["torch_dir"]],
    CORE: [build["find_compiler"], build["pybind11_dir"], build["python_include"]],
}


class BuildAll(build_all):
    """Starts from an empty folder, as all that lies there would go into the wheel."""

    def run(self) -> None:
        folder = Path(self.build_lib).resolve()
        if Path(self.build_base).resolve() in folder.parents:  # not one that --build-lib names elsewhere
            shutil.rmtree(folder, ignore_errors=True)
        super().run()


class BuildLibrary(build_ext):
    """Runs the JIT's own commands. The library for torch has no Python in it, so no Python ABI in its name."""

    def run(self) -> None:
        if self.inplace:
            self.remove_left_out()
        super().run()

    def remove_left_out(self) -> None:
        """In the checkout, the libraries that an earlier build put there and this one leaves out."""
        built = {extension.name for extension in self.distribution.ext_modules or []}
        for name in NEEDS.keys() - built:
            Path(self.get_ext_filename(name)).unlink(missing_ok=True)

    def get_ext_filename(self, fullname: str) -> str:
        return super().get_ext_filename(fullname) if fullname == CORE else fullname.replace(".", os.sep) + ".so"

    def build_extension(self, extension: Extension) -> None:
        output, library = Path(self.get_ext_fullpath(extension.name)), extension.name.rpartition(".")[2]
        build["compile_library"](output, Path("build/objects"), report=print, library=library)


class Editable(editable_wheel):
    """Runs no build_ext where there is nothing to build."""

    def run(self) -> None:
        self.get_finalized_command("build_ext").remove_left_out()
        super().run()


class Wheel(bdist_wheel):
    """For any Python, unless lcs_core is inside."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        has_core = any(extension.name == CORE for extension in self.distribution.ext_modules or [])
        return (python, abi, platform) if has_core else ("py3", "none", platform)


def wanted() -> bool | None:
    """Whether LCS_BUILD wants both libraries (True), none (False) or those that can be built (None)."""
    try:
        return build["bool_getenv"]("LCS_BUILD")
    except ValueError as error:
        raise SystemExit(f"lcs-kernels: {error}") from None


def why_not(name: str) -> str | None:
    """What keeps `name` from being built here; None: nothing does."""
    for need in NEEDS[name]:
        try:
            need()
        except (ModuleNotFoundError, FileNotFoundError, build["CompilerNotFoundError"]) as error:
            isolated = isinstance(error, ModuleNotFoundError)
            return f"{error}" + (" (pip isolates builds: --no-build-isolation)" if isolated else "")
    return None


def libraries() -> list[Extension]:
    """The extensions to build; what is left out is named, with the reason."""
    value = os.environ.get("LCS_BUILD")
    asked, setting = wanted(), f"LCS_BUILD={value}"
    reasons = {name: setting if asked is False else why_not(name) for name in NEEDS}
    missing = [f"lcs-kernels: NO {name} in this build: {why}." for name, why in reasons.items() if why]
    if missing and asked:
        raise SystemExit("\n".join([*missing, f"lcs-kernels: {setting} wants both."]))
    if missing and {"bdist_wheel", "editable_wheel"} & set(sys.argv):
        if reasons[TORCH]:
            missing.append("The first op will compile its kernels where it runs.")
        print("=" * 100, *missing, "=" * 100, sep="\n", file=sys.stderr)
    return [Extension(name, sources=[]) for name, why in reasons.items() if not why]


inside = find_namespace_packages(include=[p for n in INSIDE for p in (n, f"{n}.*")], exclude=["*.__pycache__"])
setup(
    version=build["VERSION"],
    packages=[
        *find_packages(include=["lcs_kernels", "lcs_kernels.*"]),
        *find_packages("python"),
        *(f"lcs_kernels.{name}" for name in inside),
    ],
    package_dir={
        "lcs_kernels": "lcs_kernels",
        "lcs": "python/lcs",
        **{f"lcs_kernels.{name}": name for name in INSIDE},
    },
    package_data={"": ["*.cpp", "*.cu", "*.cuh", "*.h", "*.inl", "*.json", "*.txt", "py.typed"]},
    ext_modules=libraries(),
    cmdclass={"build": BuildAll, "build_ext": BuildLibrary, "bdist_wheel": Wheel, "editable_wheel": Editable},
)
