"""What pip installs: both wheels, each in an environment of its own that borrows torch from this one."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from lcs_kernels import _build

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "build", "__pycache__", "*.egg-info", "*.so", "runs")
USE_AN_OP = """
import torch, lcs_kernels
from lcs_kernels import _load
print(lcs_kernels.__file__, _load.status().backend)
print(lcs_kernels.interpolate_prune(torch.tensor([3.0, -1.0, 2.0]), None, 0.0, 0.5).tolist(), _load.status().backend)
"""


def copy_tree(folder: Path) -> Path:
    return shutil.copytree(ROOT, folder / "tree", ignore=LEFT_OUT)


def make_wheel(folder: Path, **environment: str) -> Path:
    tree = copy_tree(folder)
    lend_objects(tree)
    pip(["wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder), str(tree)], **environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def lend_objects(tree: Path) -> None:
    """What this checkout compiled: named by content, so as good as compiled again."""
    if (ROOT / "build" / "objects").is_dir():
        shutil.copytree(ROOT / "build" / "objects", tree / "build" / "objects")


def pip(arguments: list[str], **environment: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", *arguments]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def install(wheel: Path) -> Path:
    """A new environment's python, with `wheel` installed and this environment's packages behind it."""
    home = wheel.parent / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    python = home / "bin" / "python"
    pip(["--python", str(python), "install", "--no-deps", "--no-index", str(wheel)])
    scheme = sysconfig.get_path("purelib", "venv", {"base": str(home)})
    (Path(scheme) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return make_wheel(tmp_path_factory.mktemp("wheel"), LCS_BUILD="1")


@pytest.fixture(scope="module")
def bare_wheel(tmp_path_factory):
    return make_wheel(tmp_path_factory.mktemp("bare"), LCS_BUILD="0")


@pytest.fixture(scope="module")
def bare_python(bare_wheel):
    return install(bare_wheel)


def use_an_op(python: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("LCS_", "PYTHON")) and k != "CXX"}
    env = inherited | {"LCS_CACHE": str(folder / "cache")} | environment
    return subprocess.run([python, "-c", USE_AN_OP], env=env, cwd=folder, capture_output=True, text=True)


def names_in(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_tags(wheel, bare_wheel):
    """lcs_core binds a wheel to one Python."""
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert wheel.name.endswith(f"-{python}-{python}-{platform}.whl")
    assert bare_wheel.name.endswith("-py3-none-any.whl")


def test_contents(wheel, bare_wheel):
    names = names_in(wheel)
    core = f"lcs_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert names - names_in(bare_wheel) == {"lcs_kernels/_C.so", core}
    assert {re.split(r"[-./]", name)[0] for name in names} == {"lcs", "lcs_kernels", "lcs_core"}
    for folder in ("csrc", "benchmarks", "triton_kernels"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"]
        assert {f"lcs_kernels/{path.relative_to(ROOT).as_posix()}" for path in files} <= names
        for archive in map(zipfile.ZipFile, (wheel, bare_wheel)):
            for path in files:
                assert archive.read(f"lcs_kernels/{path.relative_to(ROOT).as_posix()}") == path.read_bytes()
    layer = [path.relative_to(ROOT / "python").as_posix() for path in (ROOT / "python").rglob("*.py")]
    assert set(layer) <= names


def site_with(folder: Path, *names: str) -> Path:
    """A folder that holds only setuptools and the packages `names` of this environment."""
    import setuptools

    site = folder / "site"
    site.mkdir()
    packages = Path(setuptools.__file__).parents[1]
    for path in [*packages.glob("setuptools*"), *(packages / name for name in ("_distutils_hack", *names))]:
        (site / path.name).symlink_to(path)
    return site


def build_with(site: Path, tree: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-S", "setup.py", "bdist_wheel"]  # -S: no site-packages but `site`
    env = os.environ | {"PYTHONPATH": str(site)} | environment
    return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)


def test_build_without_torch_and_pybind11_says_so(tmp_path):
    site, tree = site_with(tmp_path), copy_tree(tmp_path)
    refused = build_with(site, tree, LCS_BUILD="1")
    assert refused.returncode != 0 and "LCS_BUILD=1 wants both" in refused.stderr
    done = build_with(site, tree, LCS_BUILD="")
    assert done.returncode == 0, done.stderr
    for output in (refused.stderr, done.stderr):
        assert "NO lcs_kernels._C in this build: torch is not installed" in output
        assert re.search("NO lcs_core in this build: pybind11 is not installed .*: pip install pybind11", output)
    assert [path.name.partition("-py3")[2] for path in (tree / "dist").iterdir()] == ["-none-any.whl"]


def test_build_without_compiler_says_so(tmp_path):
    site, tree = site_with(tmp_path, "pybind11"), copy_tree(tmp_path)
    done = build_with(site, tree, LCS_BUILD="", CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr
    assert "NO lcs_core in this build: no C++ compiler found (tried no-such-compiler on PATH)" in done.stderr
    assert [path.name.partition("-py3")[2] for path in (tree / "dist").iterdir()] == ["-none-any.whl"]


def test_core_builds_and_runs_without_torch(tmp_path):
    site, tree = site_with(tmp_path, "pybind11"), copy_tree(tmp_path)
    lend_objects(tree)
    done = build_with(site, tree, LCS_BUILD="")
    assert done.returncode == 0, done.stderr
    assert "NO lcs_kernels._C" in done.stderr and "NO lcs_core" not in done.stderr
    (wheel,) = (tree / "dist").iterdir()
    assert "-cp3" in wheel.name
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    env = os.environ | {"PYTHONPATH": str(tmp_path / "unpacked")}
    smoke = subprocess.run([sys.executable, ROOT / "tests/core/smoke.py"], env=env, capture_output=True, text=True)
    assert smoke.returncode == 0, smoke.stderr


def test_console_script(wheel):
    (entry_points,) = [name for name in names_in(wheel) if name.endswith("entry_points.txt")]
    assert "lcs = lcs.cli:main" in zipfile.ZipFile(wheel).read(entry_points).decode()


def test_library_uses_only_the_stable_abi(wheel, tmp_path):
    """One binary for every torch from 2.10 on: no symbol of torch's C++ ABI, and none of Python's."""
    library = zipfile.ZipFile(wheel).extract("lcs_kernels/_C.so", tmp_path)
    symbols = subprocess.run(["nm", "-DC", "--undefined-only", library], check=True, capture_output=True, text=True)
    undefined = [line.split(maxsplit=1)[1] for line in symbols.stdout.splitlines()]
    assert any(name.startswith(("torch_", "aoti_torch_")) for name in undefined)
    assert not [name for name in undefined if "c10::" in name or "at::" in name or "torch::" in name]
    assert not [name for name in undefined if name.startswith(("Py", "_Py"))]


def test_wheel_loads_its_library(wheel, tmp_path):
    done = use_an_op(install(wheel), tmp_path, PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert str(wheel.parent) in done.stdout
    assert done.stdout.split("\n")[0].endswith(" aot")
    assert done.stdout.endswith("[3.0, 0.0, 2.0] aot\n")
    assert not (tmp_path / "cache").exists()


def lending_compiler(folder: Path) -> Path:
    """Compiles the bindings and a kernel, without optimising; what this checkout made of the other kernels, whose
    sources `test_contents` finds to be the same, it hands out."""
    compiler, lent, objects = folder / "bin" / "c++", folder / "lent", ROOT / "build" / "objects"
    compiler.parent.mkdir()
    lent.mkdir()
    csrc = _build.csrc_dir()
    for unit, key in _build._object_keys(csrc, _build.units_of(csrc, "lcs_cpu")).items():
        if unit != "interpolate_prune_cpu" and (objects / f"{unit}.{key}.o").exists():
            (lent / unit).symlink_to(objects / f"{unit}.{key}.o")
    compiler.write_text(f"""#!/bin/sh
for last; do :; done
object={lent}/$(basename "$last" | cut -d. -f1)
if [ -e "$object" ]; then exec cp "$object" "$last"; fi
exec {shlex.join(_build.find_compiler())} "$@" -O0
""")
    compiler.chmod(0o755)
    return compiler


def test_bare_wheel_builds_at_the_first_op(bare_python, tmp_path):
    compiler = lending_compiler(tmp_path)
    done = use_an_op(bare_python, tmp_path, PATH=f"{compiler.parent}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0].endswith(" none")
    assert done.stdout.endswith("[3.0, 0.0, 2.0] jit\n")
    assert "lcs: compiling" in done.stderr


def test_bare_wheel_without_compiler_says_what_to_do(bare_python, tmp_path):
    done = use_an_op(bare_python, tmp_path, PATH=str(tmp_path))
    assert done.stdout.endswith(" none\n"), "the import must succeed"
    last = done.stderr.splitlines()[-1]
    assert last.startswith("lcs_kernels.errors.LcsUnavailableError")
    assert "install a C++20 compiler" in last and "LCS_REFERENCE=1" in last


def test_bare_wheel_runs_the_reference_on_request(bare_python, tmp_path):
    done = use_an_op(bare_python, tmp_path, PATH=str(tmp_path), LCS_REFERENCE="1")
    assert done.stdout.endswith("[3.0, 0.0, 2.0] reference\n"), done.stderr
