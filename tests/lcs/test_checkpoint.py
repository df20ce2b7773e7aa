import errno
import fcntl
import hashlib
import json
import os
import signal
import stat
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lcs import checkpoint
from lcs.checkpoint import CheckpointError


@pytest.fixture
def tensors():
    return {
        "model.weight": torch.randn(3, 5, dtype=torch.float64),
        "model.steps": torch.tensor(7),
        "momentum.weight": torch.tensor([float("nan"), -0.0, 1e-40]),
        "empty": torch.empty(0, 2),
    }


@pytest.fixture
def saved(tmp_path, tensors):
    path = checkpoint.path_for(tmp_path, 12)
    checkpoint.save(path, tensors, {"step": 12, "config": {"lr": 0.1}})
    return path


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].shape == b[name].shape
        assert a[name].numpy().tobytes() == b[name].numpy().tobytes()


def test_round_trip(saved, tensors):
    loaded, manifest = checkpoint.load(saved)
    assert_same(loaded, tensors)
    assert manifest == {"format_version": 1, "step": 12, "config": {"lr": 0.1}}


def test_any_safetensors_reader_opens_it(saved, tensors):
    assert_same(safetensors.torch.load_file(saved), tensors)


def test_a_flipped_bit_of_any_byte_is_found(saved):
    whole = saved.read_bytes()
    for i in range(len(whole)):
        damaged = bytearray(whole)
        damaged[i] ^= 1 << i % 8
        saved.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=saved.name):
            checkpoint.load(saved)


def test_every_truncation_is_found(saved):
    whole = saved.read_bytes()
    for length in range(len(whole)):
        saved.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=saved.name):
            checkpoint.load(saved)


def test_appended_bytes_are_found(saved):
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        checkpoint.load(saved)


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x07.", b"x" * 1000], ids=["empty", "pickle", "text"])
def test_other_files(tmp_path, content):
    path = tmp_path / "step-000000001.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a file of lcs"):
        checkpoint.load(path)


def forged(header: dict | str, body=b"\0" * 8) -> bytes:
    """A file whose hash is right, of any header that holds 64 zeros for it."""
    text = (header if isinstance(header, str) else json.dumps(header, separators=(",", ":"))).encode()
    blank = struct.pack("<Q", len(text)) + text + body
    return blank.replace(b"0" * 64, hashlib.blake2b(blank, digest_size=32).hexdigest().encode(), 1)


ZEROS, INTACT = "0" * 64, '{"format_version":1}'
TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"blake2b": ZEROS}},
        {"__metadata__": {"blake2b": ZEROS}},
        {"__metadata__": {"blake2b": ZEROS, "manifest": "{"}},
        {"__metadata__": {"blake2b": ZEROS, "manifest": "[]"}},
        {"__metadata__": {"blake2b": ZEROS, "manifest": "null"}},
        {"__metadata__": {"blake2b": ZEROS, "manifest": "[" * 100_000 + "]" * 100_000}},
        '{"blake2b":"' + ZEROS + '"',
        {"__metadata__": {"blake2b": ZEROS, "manifest": INTACT}, "a": TENSOR | {"data_offsets": [0, 800]}},
        {"__metadata__": {"blake2b": ZEROS, "manifest": INTACT}, "a": TENSOR | {"shape": [2**40, 2**40]}},
        {"__metadata__": {"blake2b": ZEROS, "manifest": INTACT}, "a": TENSOR | {"dtype": "F99"}},
    ],
)
def test_a_forged_header_is_refused(header, tmp_path):
    path = tmp_path / "forged"
    path.write_bytes(forged({"__metadata__": {"blake2b": ZEROS, "manifest": INTACT}, "a": TENSOR}))
    assert checkpoint.load(path)[0]["a"].tolist() == [0, 0]
    path.write_bytes(forged(header))
    with pytest.raises(CheckpointError, match="forged: its hash is right, but not its header"):
        checkpoint.load(path)


def test_other_version(tmp_path, tensors, monkeypatch):
    path = checkpoint.path_for(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 2)
    checkpoint.save(path, tensors, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format version 2; this version of lcs reads 1"):
        checkpoint.load(path)


def test_keeps_the_newest_two(tmp_path, tensors):
    for step in (1, 2, 10):
        checkpoint.save(checkpoint.path_for(tmp_path, step), tensors, {"step": step})
    assert [path.name for path in checkpoint.paths(tmp_path)] == [
        "step-000000010.safetensors",
        "step-000000002.safetensors",
    ]


def test_falls_back_to_the_one_before(tmp_path, tensors):
    for step in (1, 2):
        checkpoint.save(checkpoint.path_for(tmp_path, step), tensors, {"step": step})
    newest = checkpoint.path_for(tmp_path, 2)
    newest.write_bytes(newest.read_bytes()[:-1])
    _, manifest, notices = checkpoint.load_newest(tmp_path)
    assert manifest["step"] == 1
    assert len(notices) == 1 and newest.name in notices[0]


def test_all_damaged(saved):
    saved.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no intact checkpoint is left"):
        checkpoint.load_newest(saved.parent)


def test_none_yet(tmp_path):
    assert checkpoint.load_newest(tmp_path) is None


def test_full_disk_keeps_the_checkpoint_before(saved, tensors, full_disk):
    big = {**tensors, "model.weight": torch.zeros(100_000)}
    with full_disk(200_000):
        with pytest.raises(CheckpointError, match="step-000000013.safetensors: the checkpoint cannot be written"):
            checkpoint.save(checkpoint.path_for(saved.parent, 13), big, {"step": 13})
        with pytest.raises(OSError, match="large.json"):
            checkpoint.write_atomic(saved.parent / "large.json", bytes(300_000))
    assert os.listdir(saved.parent) == [saved.name]
    assert_same(checkpoint.load(saved)[0], tensors)


def test_order_of_writing(tmp_path, monkeypatch):
    """The content is on disk before the name changes, and the name after."""
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))[1])
    checkpoint.write_atomic(tmp_path / "file", b"content")
    assert calls == ["fsync", "replace", "fsync"]
    assert (tmp_path / "file").read_bytes() == b"content"


def test_what_is_no_regular_file_is_written_to(tmp_path):
    """A device, a pipe, a pipe by the link of its descriptor, and a file that has no name."""
    main, terminal = os.openpty()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    read, write = os.pipe()
    for path, source in ((os.ttyname(terminal), main), (pipe, reader), (f"/dev/fd/{write}", read)):
        before = os.stat(path)
        checkpoint.check_writable(Path(path))
        checkpoint.write_atomic(Path(path), b"content")
        assert os.read(source, 100) == b"content" and os.path.samestat(os.stat(path), before)
    with tempfile.TemporaryFile() as unnamed:
        unnamed.write(b"what was there before")
        checkpoint.write_atomic(Path(f"/dev/fd/{unnamed.fileno()}"), b"content")
        assert os.pread(unnamed.fileno(), 100, 0) == b"content"
    for handle in (main, terminal, reader, read, write):
        os.close(handle)
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.parametrize(
    "function", [checkpoint.check_writable, lambda path: checkpoint.write_atomic(path, b"content")]
)
def test_a_directory_is_refused(function, tmp_path):
    target = tmp_path / "directory"
    target.mkdir()
    with pytest.raises(IsADirectoryError, match="Is a directory: '.*/directory'"):
        function(target)
    assert os.listdir(tmp_path) == ["directory"] and not os.listdir(target)


def test_the_target_of_a_link_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "file", tmp_path / "link"
    link.symlink_to(Path("there") / "file")
    for content in (b"new", b"newer"):
        checkpoint.write_atomic(link, content)
        assert link.is_symlink() and target.read_bytes() == content and os.listdir(target.parent) == ["file"]


def test_permissions(tmp_path, monkeypatch):
    """A new file has those that the umask leaves, a replaced one those of the old one; the umask is never set."""
    new, old = tmp_path / "new", tmp_path / "old"
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("a write sets the umask of all threads"))
        checkpoint.write_atomic(new, b"content")
        for mode in (0o600, 0o666, 0o444):
            old.touch()
            old.chmod(mode)
            checkpoint.write_atomic(old, b"content")
            assert stat.S_IMODE(old.stat().st_mode) == mode
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert stat.S_IMODE(new.stat().st_mode) == 0o640


def test_a_name_may_be_as_long_as_names_can_be(tmp_path):
    path = tmp_path / ("n" * os.pathconf(tmp_path, "PC_NAME_MAX"))
    checkpoint.check_writable(path)
    checkpoint.write_atomic(path, b"content")
    assert path.read_bytes() == b"content"


def test_what_a_killed_writer_left_goes_with_the_next_write_to_that_path(tmp_path):
    path, other = tmp_path / "model.lcs", tmp_path / "other.lcs"
    killed = (
        "import os, signal, sys; from pathlib import Path; from lcs import checkpoint\n"
        "os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoint.write_atomic(Path(sys.argv[1]), b'x' * 1000)"
    )
    for target in (path, other):
        assert subprocess.run([sys.executable, "-c", killed, target], check=False).returncode == -signal.SIGKILL
    left = set(tmp_path.iterdir())
    assert [file.stat().st_size for file in left] == [1000, 1000]
    checkpoint.write_atomic(path, b"content")
    assert len(left & set(tmp_path.iterdir())) == 1 and path.read_bytes() == b"content"
    checkpoint.write_atomic(other, b"content")
    assert set(tmp_path.iterdir()) == {path, other}


def test_what_is_being_written_is_not_swept(tmp_path, monkeypatch):
    path, replace, written = tmp_path / "file", os.replace, []

    def another_write_first(*names):
        if not written:
            written.append(names)
            checkpoint.write_atomic(path, b"other")
            assert path.read_bytes() == b"other" and checkpoint.sweep(tmp_path) == []
        replace(*names)

    monkeypatch.setattr(os, "replace", another_write_first)
    checkpoint.write_atomic(path, b"content")
    assert path.read_bytes() == b"content" and os.listdir(tmp_path) == ["file"]


def test_what_is_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    path, lock, swept = tmp_path / "file", fcntl.flock, []

    def swept_first(file, how):
        monkeypatch.setattr(fcntl, "flock", lock)
        swept.extend(checkpoint.sweep(tmp_path))
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", swept_first)
    checkpoint.write_atomic(path, b"content")
    assert len(swept) == 1 and path.read_bytes() == b"content" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("step, number", [("open", errno.EACCES), ("fsync", errno.EINVAL), ("fsync", errno.EIO)])
def test_a_directory_that_cannot_be_synced(step, number, tmp_path, monkeypatch):
    """One that may be written, but not read; one of a file system that never syncs one; a disk that fails."""
    path, real = tmp_path / "file", getattr(os, step)

    def fails(what, *flags):
        if os.path.exists(what) and stat.S_ISDIR(os.stat(what).st_mode):
            raise OSError(number, os.strerror(number))
        return real(what, *flags)

    monkeypatch.setattr(os, step, fails)
    if number == errno.EIO:
        with pytest.raises(CheckpointError, match="file: is in place, but may not outlast a power cut: .*output error"):
            checkpoint.write_atomic(path, b"content")
    else:
        checkpoint.write_atomic(path, b"content")
    assert path.read_bytes() == b"content"


def test_sweep(tmp_path):
    orphan = tmp_path / "step-000000001.safetensorsab12.tmp"
    orphan.write_bytes(b"torn")
    (tmp_path / "keep").write_bytes(b"")
    assert checkpoint.sweep(tmp_path) == [orphan]
    assert os.listdir(tmp_path) == ["keep"]


def test_other_run_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="another run: lr 0.1 there and 0.2 here, seed 0 there and 1 here"):
        checkpoint.check_identity(tmp_path, {"lr": 0.1, "seed": 0, "data": "x"}, {"lr": 0.2, "seed": 1, "data": "x"})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model.weight": torch.zeros(3, 4)}, r"model.weight is float64 \(3, 5\) there and float32 \(3, 4\) here"),
        ({"other": torch.zeros(1)}, r"other is absent there and float32 \(1,\) here"),
    ],
    ids=["shape", "absent"],
)
def test_other_model_is_named(tmp_path, tensors, change, message):
    with pytest.raises(CheckpointError, match=message):
        checkpoint.check_tensors(tmp_path, tensors, {**tensors, **change})
