"""The JIT and its cache, on a two-file library; tests/test_wheel.py builds the real one."""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from lcs_kernels import LcsUnavailableError, _build, _jit
from lcs_kernels.errors import LcsBuildError

# Imports the JIT without the package around it, which would import torch. It heeds interrupts even where these tests
# run in the background of a shell, which ignores them.
CHILD = """
import signal, sys, types
signal.signal(signal.SIGINT, signal.default_int_handler)
package = types.ModuleType("lcs_kernels")
package.__path__ = [sys.argv[1]]
sys.modules["lcs_kernels"] = package
from pathlib import Path
from lcs_kernels import _jit
print(_jit.build(csrc=Path(sys.argv[2])))
"""


@pytest.fixture
def csrc(tmp_path):
    root = tmp_path / "csrc"
    (root / "cpu").mkdir(parents=True)
    (root / "include").mkdir()
    (root / "sources.txt").write_text("cpu/one.cpp\ncpu/two.cpp\n")
    (root / "include" / "two.h").write_text("#pragma once\nint two();\n")
    (root / "cpu" / "two.cpp").write_text('#include "two.h"\nint two() { return 2; }\n')
    (root / "cpu" / "one.cpp").write_text(
        '#include "two.h"\nextern "C" __attribute__((visibility("default"))) int three() { return 1 + two(); }\n'
    )
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LCS_CACHE", str(tmp_path / "cache"))
    for name in ("LCS_DISABLE_JIT", "LCS_JIT_TIMEOUT", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "jit"


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler that notes each output it makes, and stalls where the file `stall` names that or is empty.

    It notes in `sleeper` the process that it then waits for, as g++ does for cc1plus.
    """
    script, noted, stall, sleeper = (tmp_path / name for name in ("cxx", "outputs", "stall", "sleeper"))
    script.write_text(f"""#!/bin/sh
for last; do :; done
echo "$last" >> {noted}
if [ -e {stall} ] && case "$last" in *"$(cat {stall})"*) true ;; *) false ;; esac; then
  sleep 60 & echo $! > {sleeper}.new; mv {sleeper}.new {sleeper}; wait
fi
exec {_build.find_compiler()[0]} "$@"
""")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return SimpleNamespace(noted=noted, stall=stall, sleeper=sleeper)


def build(csrc: Path) -> tuple[Path, list[str]]:
    lines: list[str] = []
    return _jit.build(lines.append, csrc=csrc), lines


def start(csrc: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD, str(Path(_jit.__file__).parent), str(csrc)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def has_ended(process: int) -> bool:
    """A zombie, too: whoever adopted it may not collect it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until_ended(process: int) -> None:
    deadline = time.monotonic() + 30
    while not has_ended(process):
        assert time.monotonic() < deadline, f"process {process} goes on"
        time.sleep(0.01)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.01)


def test_cold_then_warm(csrc, cache, compiler):
    library, lines = build(csrc)
    assert library.parents[1] == cache
    assert ctypes.CDLL(str(library)).three() == 3
    assert lines[0] == "first use: compiling 2 files, which can take some minutes; cached afterwards"
    assert not list(cache.glob("tmp-*")) and not (cache / "objects").exists()
    compiler.noted.unlink()
    (cache / "lock").unlink()
    assert build(csrc) == (library, [])
    assert not compiler.noted.exists()
    assert not (cache / "lock").exists(), "a warm start must also work from a read-only cache"


def change_source(csrc, tmp_path, monkeypatch):
    (csrc / "cpu" / "two.cpp").write_text('#include "two.h"\nint two() { return 3; }\n')


def change_header(csrc, tmp_path, monkeypatch):
    (csrc / "include" / "two.h").write_text("#pragma once\nint two();\nint four();\n")


def change_flags(csrc, tmp_path, monkeypatch):
    monkeypatch.setattr(_build, "CXX_FLAGS", [*_build.CXX_FLAGS, "-g"])


def change_version(csrc, tmp_path, monkeypatch):
    monkeypatch.setattr(_build, "VERSION", "0")


def change_torch(csrc, tmp_path, monkeypatch):
    (tmp_path / "version.py").write_text("__version__ = '0'")
    monkeypatch.setattr(_build, "torch_dir", lambda: tmp_path)


def change_compiler(csrc, tmp_path, monkeypatch):
    (tmp_path / "other").write_text("#!/bin/sh\n")
    (tmp_path / "other").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "other"))


CHANGES = [change_source, change_header, change_flags, change_version, change_torch, change_compiler]


@pytest.mark.parametrize("change", CHANGES)
def test_key_follows(change, csrc, cache, tmp_path, monkeypatch):
    before = _build.build_key(csrc)
    assert _build.build_key(csrc) == before
    change(csrc, tmp_path, monkeypatch)
    assert _build.build_key(csrc) != before


def test_only_changed_files_compile_again(csrc, cache, tmp_path):
    reports = []
    for _ in range(2):
        _build.compile_library(tmp_path / "out" / "a.so", tmp_path / "objects", csrc, report=reports.append)
        change_source(csrc, tmp_path, None)
    assert reports == ["compiling 2 of 2 units", "compiling 1 of 2 units"]


def test_many_processes_build_once(csrc, cache, compiler):
    children = [start(csrc) for _ in range(16)]
    outputs = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0] * 16, outputs
    assert len({out for out, _ in outputs}) == 1
    assert sum("compiling" in err for _, err in outputs) == 1
    assert len(compiler.noted.read_text().split()) == 3  # two objects and the library


def test_next_build_succeeds_after_kill(csrc, cache, compiler):
    compiler.stall.write_text("two")
    child = start(csrc)
    wait_for(compiler.sleeper)
    os.kill(child.pid, signal.SIGKILL)
    child.wait(30)
    assert list(cache.glob("tmp-*"))
    compiler.stall.unlink()
    library, _ = build(csrc)
    assert ctypes.CDLL(str(library)).three() == 3
    assert not list(cache.glob("tmp-*"))
    os.kill(int(compiler.sleeper.read_text()), signal.SIGKILL)  # which lets the stalled compiler end


def test_kills_all_over_a_build_leave_nothing_behind(csrc, cache, monkeypatch, tmp_path):
    begin = time.monotonic()
    start(csrc).communicate(timeout=120)
    whole = time.monotonic() - begin
    for i in range(20):
        monkeypatch.setenv("LCS_CACHE", str(tmp_path / f"cache{i}"))
        child = start(csrc)
        time.sleep(whole * i / 19)
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate(timeout=30)
        library, _ = build(csrc)
        assert ctypes.CDLL(str(library)).three() == 3
        assert not list(library.parents[1].glob("tmp-*"))


def truncate(library):
    library.write_bytes(library.read_bytes()[:100])


def flip_a_bit(library):
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)


def lose_the_hash(library):
    library.with_name(library.name + ".sha256").unlink()


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lose_the_hash, Path.unlink])
def test_damaged_library_is_built_again(damage, csrc, cache):
    library, _ = build(csrc)
    whole = library.read_bytes()
    damage(library)
    again, lines = build(csrc)
    assert again == library and lines
    assert library.read_bytes() == whole


@pytest.mark.parametrize("cxx, tried", [("", r"c\+\+, g\+\+, clang\+\+"), ("no-such-compiler", "no-such-compiler")])
def test_without_compiler(cxx, tried, csrc, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", cxx)
    with pytest.raises(LcsUnavailableError, match=rf"tried {tried} .*install a C\+\+20 compiler.*LCS_REFERENCE=1"):
        build(csrc)


def test_disabled(csrc, cache, monkeypatch):
    monkeypatch.setenv("LCS_DISABLE_JIT", "1")
    with pytest.raises(LcsUnavailableError, match="LCS_DISABLE_JIT.*unset it.*LCS_REFERENCE=1"):
        build(csrc)
    monkeypatch.setenv("LCS_DISABLE_JIT", "no")
    assert build(csrc)[0].is_file()


def test_compile_error_shows_the_compilers_words(csrc, cache):
    (csrc / "cpu" / "two.cpp").write_text("int two() { return nothing_of_that_name; }\n")
    with pytest.raises(LcsBuildError, match=r"two\.cpp:1:.*error.*nothing_of_that_name") as caught:
        build(csrc)
    log = Path(re.search(r"log is (\S+\.log)", str(caught.value))[1])
    assert "-ffp-contract=off" in log.read_text()
    assert not list(cache.glob("tmp-*"))


def test_undefined_symbol_fails_at_link_time(csrc, cache):
    (csrc / "cpu" / "two.cpp").write_text("")
    with pytest.raises(LcsBuildError, match=r"undefined reference to `two\(\)'"):
        build(csrc)


def test_build_time_is_bounded(csrc, cache, compiler, monkeypatch):
    compiler.stall.touch()
    monkeypatch.setenv("LCS_JIT_TIMEOUT", "1")
    with pytest.raises(LcsBuildError, match=r"ran out of time: LCS_JIT_TIMEOUT=1 s .*go on.*MAX_JOBS"):
        build(csrc)
    wait_until_ended(int(compiler.sleeper.read_text()))


def test_an_interrupt_ends_the_compilers_and_the_next_build_goes_on(csrc, cache, compiler):
    for stalled in ("two", "lcs_kernels.so"):
        compiler.stall.write_text(stalled)
        child = start(csrc)
        wait_for(compiler.sleeper)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)
        assert "KeyboardInterrupt" in err
        wait_until_ended(int(compiler.sleeper.read_text()))
        compiler.sleeper.unlink()
    compiler.stall.unlink()
    library, lines = build(csrc)
    assert ctypes.CDLL(str(library)).three() == 3 and lines[1] == "compiling 0 of 2 units"


def test_a_long_build_says_how_far_it_is(csrc, cache, compiler, monkeypatch):
    compiler.stall.write_text("two")
    monkeypatch.setattr(_build, "REPORT_SECONDS", 0.01)
    lines = []

    def go_on_after_one(line):
        lines.append(line)
        if line == "1 of 2 units" and compiler.sleeper.exists():
            os.kill(int(compiler.sleeper.read_text()), signal.SIGKILL)
            compiler.sleeper.unlink()

    _jit.build(go_on_after_one, csrc=csrc)
    assert lines[1] == "compiling 2 of 2 units" and "1 of 2 units" in lines


@pytest.mark.parametrize("text, said", [("", "cannot run the compiler"), ("#!/bin/sh\n", "wrote no file")])
def test_a_compiler_that_is_none_is_named(text, said, csrc, cache, tmp_path, monkeypatch):
    compiler = tmp_path / "no-compiler"
    compiler.write_text(text or "\0")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(LcsBuildError, match=said) as caught:
        build(csrc)
    assert str(compiler) in str(caught.value)


@pytest.mark.parametrize("cxx", ["  ", "g++ '"])
def test_a_compiler_that_is_no_command_is_named(cxx, csrc, cache, monkeypatch):
    monkeypatch.setenv("CXX", cxx)
    with pytest.raises(LcsUnavailableError, match="CXX=.*unset it") as caught:
        build(csrc)
    assert repr(cxx) in str(caught.value)


def test_waiting_is_bounded_and_names_the_holder(csrc, cache, monkeypatch):
    monkeypatch.setenv("LCS_JIT_TIMEOUT", "0.2")
    cache.mkdir(parents=True, mode=0o700)
    (cache / "holder.json").write_text(json.dumps({"pid": 4321, "host": "elsewhere", "since": "noon"}))
    lines = []
    with FileLock(cache / "lock"):
        with pytest.raises(LcsUnavailableError, match=r"process 4321 on elsewhere \(since noon\).*LCS_JIT_TIMEOUT"):
            _jit.build(lines.append, csrc=csrc)
    assert lines == ["waiting for process 4321 on elsewhere (since noon) to finish a build"]


@pytest.mark.parametrize("value", ["soon", "nan"])
def test_timeout_must_be_a_number(value, csrc, cache, monkeypatch):
    monkeypatch.setenv("LCS_JIT_TIMEOUT", value)
    with pytest.raises(ValueError, match=f"LCS_JIT_TIMEOUT: '{value}'"):
        build(csrc)


@pytest.mark.parametrize("value", ["inf", "1e12"])
def test_timeout_may_be_endless(value, csrc, cache, monkeypatch):
    monkeypatch.setenv("LCS_JIT_TIMEOUT", value)
    assert build(csrc)[0].is_file()


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_number_of_compilers_must_be_one(value, csrc, cache, monkeypatch):
    monkeypatch.setenv("MAX_JOBS", value)
    with pytest.raises(ValueError, match=f"MAX_JOBS: '{value}'"):
        build(csrc)


def test_a_user_without_a_home_has_a_cache_folder(monkeypatch):
    for name in ("HOME", "LCS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # which raises KeyError, as for an unknown user
    assert _jit.cache_dir() == Path("/.cache/lcs-kernels")


def test_unwritable_cache_falls_to_a_temporary_one(csrc, cache, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LCS_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.warns(UserWarning, match="cannot write the cache"):
        library, _ = build(csrc)
    assert library.parents[1] == tmp_path / f"lcs-kernels-jit-{os.getuid()}"
    assert library.exists()


@pytest.mark.parametrize("room", [20, 500, 5000])
def test_full_disk_is_named(room, csrc, cache):
    """No file can grow beyond `room` bytes: the lock holder's, an object, the library."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n{CHILD}"
    command = [sys.executable, "-c", limited, str(Path(_jit.__file__).parent), str(csrc)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    last = done.stderr.splitlines()[-1] if room == 20 else done.stderr
    assert re.search(r"errors\.Lcs(Unavailable|Build)Error: lcs_kernels: .*LCS_", last, re.DOTALL), done.stderr
    library, _ = build(csrc)
    assert ctypes.CDLL(str(library)).three() == 3


def test_nothing_writable(csrc, cache, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LCS_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.warns(UserWarning), pytest.raises(LcsUnavailableError, match="set LCS_CACHE to a writable folder"):
        build(csrc)


def test_cache_that_others_can_write_is_refused(csrc, cache):
    library, _ = build(csrc)
    cache.chmod(0o777)
    with pytest.raises(LcsUnavailableError, match="refusing the cache.*LCS_CACHE"):
        build(csrc)


def test_cache_of_another_user_is_refused():
    directory = SimpleNamespace(stat=lambda: SimpleNamespace(st_uid=os.getuid() + 1, st_mode=0o40755))
    with pytest.raises(LcsUnavailableError, match=f"owner uid {os.getuid() + 1}"):
        _jit._refuse_untrusted(directory)
