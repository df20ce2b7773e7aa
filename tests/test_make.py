"""`make build`, with scripts in place of Python, so that nothing is installed or compiled."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def add_python(path: Path, version: str = "3.11") -> None:
    """A script that notes its arguments in `log`, makes environments, and the libraries where they are asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"""#!/bin/sh
case "$*" in
  *print*) echo {version}; exit ;;
  -c*|"-m pip --version") exit ;;
esac
echo "$*" >> log
case "$*" in
  "-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
esac
if [ "$LCS_BUILD" = 1 ]; then touch lcs_kernels/_C.so lcs_core.so; fi
""")
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "a checkout"
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "setup.py", "lcs_kernels/_build.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "csrc").mkdir()
    (folder / "csrc" / "some.cpp").touch()
    add_python(tmp_path / "bin" / "python3")
    return folder


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    of_a_make_around = ("MAKE", "MFLAGS", "TORCH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(of_a_make_around)}
    environment |= {"PATH": f"{folder.parent / 'bin'}:{os.environ['PATH']}", "PYTHON": "python3", "CXX": "true"}
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def commands_of(folder: Path) -> list[str]:
    """What Python was called for since the last look, without the options of pip."""
    log = folder / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [" ".join(line.split()[1:3]) for line in lines]


def test_a_build_is_done_once(checkout):
    assert make(checkout, "build").returncode == 0
    assert commands_of(checkout) == ["venv --clear", *["pip install"] * 3]
    assert make(checkout, "build").returncode == 0 and commands_of(checkout) == []


@pytest.mark.parametrize("library", ["lcs_kernels/_C.so", "lcs_core.so"])
def test_a_library_that_was_removed_is_built_again(library, checkout):
    make(checkout, "build")
    commands_of(checkout)
    (checkout / library).unlink()
    assert make(checkout, "build").returncode == 0
    assert commands_of(checkout) == ["pip install"] and (checkout / library).exists()


def test_an_environment_that_was_not_finished_is_made_again(checkout):
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    assert make(checkout, "build").returncode == 0
    assert commands_of(checkout)[0] == "venv --clear"


def test_another_python_than_the_environments_is_refused(checkout):
    make(checkout, "build")
    commands_of(checkout)
    add_python(checkout.parent / "bin" / "other", "3.12")
    done = make(checkout, "build", "PYTHON=other")
    assert done.returncode != 0 and commands_of(checkout) == []
    assert ".venv holds Python 3.11, but other is 3.12" in done.stderr and "rm -r .venv" in done.stderr


def test_a_python_that_is_not_there_is_named(checkout):
    done = make(checkout, "build", "PYTHON=nonexistent")
    assert done.returncode != 0 and "there is no Python 'nonexistent' that runs" in done.stderr


def test_cmake_takes_the_python_of_the_environment(checkout):
    make(checkout, "build")
    (checkout.parent / "bin" / "cmake").touch(0o755)
    done = make(checkout, "--dry-run", "ctest")
    assert f"-DPython_EXECUTABLE='{checkout}/.venv/bin/python' " in done.stdout
