"""What pyproject.toml cannot say: where the packages lie, and the compiled library lcs_kernels._C.

LCS_BUILD=0 makes a wheel without the library (the JIT builds it on first use); LCS_BUILD=1 makes its absence an error.
"""

import os
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, find_namespace_packages, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

build = runpy.run_path("lcs_kernels/_build.py")
INSIDE = ["benchmarks", "csrc", "triton_kernels"]  # top-level folders of a checkout, installed inside lcs_kernels


class BuildLibrary(build_ext):
    """Runs the JIT's own commands. The library has no Python in it, so no Python ABI in its name."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, extension: Extension) -> None:
        output = Path(self.get_ext_fullpath(extension.name))
        build["compile_library"](output, Path("build/objects"), report=print)


class AnyPythonWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def library() -> list[Extension]:
    """The extension to build; none, said loudly, where it is not wanted or cannot be built."""
    wanted = os.environ.get("LCS_BUILD")
    if wanted != "0" and find_spec("torch"):
        return [Extension("lcs_kernels._C", sources=[])]
    why = "LCS_BUILD=0" if wanted == "0" else "torch is not installed here (pip isolates builds: --no-build-isolation)"
    if wanted == "1":
        raise SystemExit(f"lcs-kernels: LCS_BUILD=1, but {why}")
    if {"bdist_wheel", "editable_wheel"} & set(sys.argv):
        lines = [
            f"lcs-kernels: NO COMPILED LIBRARY in this build: {why}.",
            "The first op will compile it where it runs.",
        ]
        print("=" * 100, *lines, "=" * 100, sep="\n", file=sys.stderr)
    return []


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
    package_data={"": ["*.cpp", "*.cu", "*.cuh", "*.h", "*.inl", "*.txt", "*.yaml", "py.typed"]},
    ext_modules=library(),
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": AnyPythonWheel},
)
