"""The rules that the C++ sources and the package keep, whatever is added to them."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lcs_kernels import _build

ROOT = Path(__file__).parents[1]
CSRC = _build.csrc_dir()
LISTED = (CSRC / "sources.txt").read_text().split()
ISA_FILES = [name for name in LISTED if "LCS_TARGET_BEGIN(" in (CSRC / name).read_text()]


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_source_list_is_the_disk():
    on_disk = [path.relative_to(CSRC).as_posix() for path in CSRC.rglob("*") if path.suffix in _build.SOURCE_SUFFIXES]
    assert sorted(LISTED) == sorted(on_disk)


def test_stems_are_unique():
    stems = [Path(name).stem for name in LISTED]
    assert sorted(stems) == sorted(set(stems))


def test_which_library_a_source_is_in(tmp_path):
    names = ["core/a_core.cpp", "cpu/a.cpp", "torch/a_op.cpp", "torch/a_cuda_op.cpp", "cuda/a_cuda.cu"]
    (tmp_path / "sources.txt").write_text("\n".join(names))
    assert _build.sources(tmp_path) == names[1:3]
    assert _build.sources(tmp_path, "_C_cuda") == names[3:]
    assert _build.sources(tmp_path, "lcs_core") == names[:2]
    assert _build.sources(tmp_path, "lcs_cpu") == names[1:2]


@pytest.mark.parametrize(("folder", "headers"), [("torch", "torch|ATen|c10"), ("core", "pybind11|Python")])
def test_only_the_bindings_know_what_they_bind_to(folder, headers):
    for path in CSRC.rglob("*"):
        if path.is_file() and path.parent != CSRC / folder:
            assert not re.search(rf"#include\s*[<\"]({headers})\b", path.read_text()), path


def test_the_bindings_compile_with_the_oldest_torch():
    """Its headers have these macros of the stable ABI; newer ones have more, at whatever target."""
    of_torch_2_10 = {
        *("STABLE_TORCH_LIBRARY_FRAGMENT", "STABLE_TORCH_LIBRARY_IMPL", "STD_TORCH_CHECK", "TORCH_ABI_VERSION"),
        "TORCH_BOX",
    }
    text = "".join(path.read_text() for path in (CSRC / "torch").iterdir())
    assert set(re.findall(r"\b(?:STABLE|STD|TORCH)_[A-Z_]+\b", text)) == of_torch_2_10 | {"TORCH_ERROR_CODE_CHECK"}


def test_libraries_share_the_objects_of_the_kernels():
    names = "_C", "lcs_core", "lcs_cpu"
    torch, core, kernels = (_build._object_keys(CSRC, _build.units_of(CSRC, library)) for library in names)
    assert kernels.keys() == {Path(name).stem for name in LISTED if name.startswith("cpu/")}
    assert torch.items() & core.items() == kernels.items()


def test_the_archive_holds_what_is_listed_now_and_else_stays(tmp_path):
    (tmp_path / "cpu").mkdir()
    output, found = tmp_path / "a.a", []
    for text in ("int one;", "int one;", "int two;"):
        (tmp_path / "sources.txt").write_text("cpu/some.cpp\n")
        (tmp_path / "cpu" / "some.cpp").write_text(text)
        _build.compile_library(output, tmp_path / "objects", tmp_path, library="lcs_cpu")
        found.append((output.stat().st_mtime_ns, run("nm", str(output)).split()[-1]))
    assert found[0] == found[1] and [symbol for _, symbol in found] == ["one", "one", "two"]


def test_objects_name_sources_and_not_where_they_were_built(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "some.h").write_text("#define HERE __FILE__")
    (tmp_path / "cpu" / "some.cpp").write_text('#include "some.h"\nextern const char* file; const char* file = HERE;')
    _build.compile_object(_build.find_compiler(), tmp_path, ["cpu/some.cpp"], tmp_path / "a.o")
    content = (tmp_path / "a.o").read_bytes()
    assert b"csrc/cpu/some.cpp" in content and str(tmp_path).encode() not in content


def test_warnings_are_errors_where_asked_for(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "some.cpp").write_text("static int unused;")
    arguments = _build.find_compiler(), tmp_path, ["cpu/some.cpp"], tmp_path / "a.o"
    _build.compile_object(*arguments)
    with pytest.raises(_build.CompileError, match="unused"):
        _build.compile_object(*arguments, warn=True)


@pytest.mark.parametrize("library", ["_C", "lcs_core", "lcs_cpu"])
def test_every_source_is_in_one_unit(library):
    units = _build.units_of(CSRC, library)
    assert sorted(name for names in units.values() for name in names) == sorted(_build.sources(CSRC, library))
    assert all(len({Path(name).parent for name in names}) == 1 for names in units.values())


@pytest.mark.parametrize("folder", ["torch", "core"])
def test_objects_do_not_name_where_other_headers_lie(folder, tmp_path, monkeypatch):
    site = tmp_path / "site"
    (site / "include").mkdir(parents=True)
    (site / "include" / "some.h").write_text("inline const char* here() { return __FILE__; }")
    monkeypatch.setattr(_build, f"{'pybind11' if folder == 'core' else folder}_dir", lambda: site)
    source = tmp_path / "csrc" / folder / "a.cpp"
    source.parent.mkdir(parents=True)
    source.write_text("#include <some.h>\nconst char* (*there)() = here;")
    _build.compile_object(_build.find_compiler(), tmp_path / "csrc", [f"{folder}/a.cpp"], tmp_path / "a.o")
    content = (tmp_path / "a.o").read_bytes()
    assert b"include/some.h" in content and str(tmp_path).encode() not in content


def test_cmake_warns_of_what_the_build_warns_of_and_clang_of_no_unknown_warning():
    assert "-Wno-unknown-warning-option" in _build.warnings("cpu/a.cpp")
    assert " ".join(_build.warnings("cpu/a.cpp")) in (ROOT / "CMakeLists.txt").read_text()


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake")
def test_cmake_hands_on_the_whole_command_of_the_compiler(tmp_path):
    (tmp_path / "folder of tools").mkdir()
    wrapper = tmp_path / "folder of tools" / "wrapper"
    wrapper.write_text('#!/bin/sh\nexec "$@"\n')
    wrapper.chmod(0o755)
    known = [f"-D{name}=1" for name in ("CMAKE_CXX_COMPILER_FORCED", "CMAKE_HAVE_LIBC_PTHREAD")]
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), f"-DPython_EXECUTABLE={sys.executable}", *known]
    compiler = _build.find_compiler()[0]
    subprocess.run(command, check=True, env=os.environ | {"CXX": f"'{wrapper}' {compiler} -DSOME"}, capture_output=True)
    rule = (tmp_path / "CMakeFiles" / "build_lcs_cpu.dir" / "build.make").read_text()
    (handed_on,) = re.findall(r'env "CXX=(.*?)" ', rule)
    assert _build.shlex.split(handed_on) == [str(wrapper), compiler, "-DSOME"]


@pytest.mark.parametrize("value, meant", [("", None), ("1", True), ("TRUE", True), ("on", True), ("off", False)])
def test_a_variable_that_switches_is_yes_or_no(value, meant, monkeypatch):
    monkeypatch.setenv("LCS_SOME", value)
    assert _build.bool_getenv("LCS_SOME") is meant


@pytest.mark.parametrize("name, find", [("CXX", _build.find_compiler), ("NVCC", _build.find_nvcc)])
@pytest.mark.parametrize("value", ["  ", "g++ '"])
def test_what_is_no_command_is_no_compiler(value, name, find, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(_build.CompilerNotFoundError, match=f"{name}=.*unset it") as caught:
        find()
    assert repr(value) in str(caught.value)


@pytest.fixture
def checkout(tmp_path):
    """What setup.py reads of one, and what an earlier build left."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "lcs_kernels/_build.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    core = "lcs_core" + sysconfig.get_config_var("EXT_SUFFIX")
    library = sysconfig.get_platform(), sys.implementation.cache_tag
    for folder in ("lib", "lib.{}-{}".format(*library)):
        (tmp_path / "build" / folder / "lcs").mkdir(parents=True)
        (tmp_path / "build" / folder / "lcs" / "removed.py").touch()
    for name in ("python/lcs/__init__.py", "lcs_kernels/__init__.py", "lcs_kernels/_C.so", core):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def set_up(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "setup.py", "--quiet", *arguments]
    return subprocess.run(command, cwd=checkout, env=os.environ | environment, capture_output=True, text=True)


def test_a_build_starts_from_an_empty_folder(checkout):
    done = set_up(checkout, "build", LCS_BUILD="0")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (checkout / "build" / "lib").rglob("*.py")} == {"__init__.py", "_build.py"}


def test_a_build_empties_no_folder_of_others(checkout):
    (checkout / "mine").mkdir()
    (checkout / "mine" / "some.txt").touch()
    done = set_up(checkout, "build", "--build-lib=mine", LCS_BUILD="no")
    assert done.returncode == 0 and (checkout / "mine" / "some.txt").exists(), done.stderr


@pytest.mark.parametrize("command", [["editable_wheel"], ["build_ext", "--inplace"]])
def test_a_checkout_keeps_no_library_that_is_left_out(command, checkout):
    done = set_up(checkout, *command, LCS_BUILD="off")
    assert done.returncode == 0, done.stderr
    assert not [path for path in checkout.rglob("*.so")]


def test_a_build_without_yes_or_no_is_refused(checkout):
    done = set_up(checkout, "build", LCS_BUILD="maybe")
    assert done.returncode == 1 and "lcs-kernels: LCS_BUILD: 'maybe' is neither yes nor no" in done.stderr


def test_the_source_package_holds_the_documents(checkout):
    for name in ("MANIFEST.in", *(path.name for path in ROOT.glob("*.md"))):
        shutil.copy(ROOT / name, checkout / name)
    done = set_up(checkout, "egg_info", LCS_BUILD="0")
    assert done.returncode == 0, done.stderr
    (listed,) = checkout.glob("*.egg-info/SOURCES.txt")
    assert {"README.md", "CONTRIBUTING.md"} <= set(listed.read_text().split())


@pytest.mark.parametrize("asked", [_build.torch_dir, _build.pybind11_dir])
def test_a_missing_package_is_named(asked, monkeypatch):
    monkeypatch.setattr(_build, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="is not installed in this environment.*install"):
        asked()


def test_missing_headers_of_python_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(_build.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="Python.h: install .*python3-dev"):
        _build.python_include()


def test_no_code_asks_what_the_build_machine_has():
    for path in CSRC.rglob("*"):
        if path.is_file():
            assert not re.search(r"\b__(AVX|AMX|FMA__|SSE)", path.read_text()), path
    assert not [flag for flag in _build.CXX_FLAGS if flag.startswith("-m")]


@pytest.mark.parametrize("name", ISA_FILES)
def test_isa_objects_share_no_code(name, tmp_path):
    """A weak symbol of such an object could be linked in place of the baseline's and fault on an older CPU."""
    stem = Path(name).stem
    found = CSRC.parent / "build" / "objects" / f"{stem}.{_build._object_keys(CSRC, {stem: [name]})[stem]}.o"
    if not found.exists():  # named by content: where the build left it, as good as compiled again
        found = tmp_path / "a.o"
        _build.compile_object(_build.find_compiler(), CSRC, [name], found)
    symbols = run("nm", "--defined-only", str(found)).splitlines()
    assert symbols
    assert not [line for line in symbols if line.split()[1] in "WwVvu"]


def test_files_are_named_by_their_instruction_set():
    sets = ("avx2", "avx512", "vnni", "bf16", "amx")
    assert ISA_FILES == [name for name in LISTED if Path(name).stem.rpartition("_")[2] in sets]


def test_flags_need_no_installed_package():
    """setup.py and CMake run this file before anything is installed."""
    script = Path(_build.__file__)
    assert run(sys.executable, "-I", "-S", str(script), "flags").strip().split(";") == _build.CXX_FLAGS


def test_import_is_light():
    code = """
import sys, torch

class Refuse:
    asked = []
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            self.asked.append(name)
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import lcs_kernels
print(Refuse.asked, "torch._dynamo" in sys.modules, torch.cuda.is_initialized())
"""
    assert run("env", "CUDA_VISIBLE_DEVICES=", sys.executable, "-c", code) == "[] False False\n"


def test_another_kind_of_machine_is_named(monkeypatch):
    monkeypatch.setattr(_build.platform, "machine", lambda: "aarch64")
    with pytest.raises(_build.CompilerNotFoundError, match="written for x86-64, and this machine is aarch64"):
        _build.find_compiler()
