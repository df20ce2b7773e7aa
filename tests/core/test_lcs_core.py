"""lcs_core by itself: no torch, arguments refused by name, threads at once, the instruction set as set."""

import subprocess
import sys
import threading
from pathlib import Path

import lcs_core
import numpy as np
import pytest

W = np.array([3, -1, 2], np.float32)
WORD = np.array([0b101], np.uint32)


def test_runs_without_torch():
    done = subprocess.run([sys.executable, Path(__file__).with_name("smoke.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_dtypes():
    for dtype in (None, "float32", np.float32, "float16", np.dtype("float16"), "bfloat16"):
        w, mask_bits = lcs_core.interpolate_prune(W, None, 0.0, 2, dtype)
        assert w.dtype == {None: np.float32, "bfloat16": np.uint16}.get(dtype, dtype) and mask_bits.dtype == np.uint32
    assert w.tolist() == [0x4040, 0, 0x4000]


def test_shapes():
    square = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert lcs_core.interpolate_prune(square, square, 0.5, 2)[0].tolist() == [[0, 0, 0], [0, 4, 5]]
    for shape in [(), (0,), (3, 0)]:
        w, mask_bits = lcs_core.interpolate_prune(np.ones(shape, np.float32), None, 0.0, 0)
        assert w.shape == shape and not w.any() and mask_bits.size == (1 if shape == () else 0)


def test_foreach_keep():
    assert lcs_core.interpolate_prune_foreach([W, W], None, 0.0, 1)[1] == [[0], [1]]
    for keep in ([1, 2], (1, 2), np.array([1, 2])):
        assert lcs_core.interpolate_prune_foreach([W, W], None, 0.0, keep)[1] == [[1], [0b101]]
    assert lcs_core.interpolate_prune_foreach([], None, 0.0, 0) == ([], [])


def test_instruction_set():
    lcs_core.set_isa("scalar")
    assert lcs_core.isa() == "scalar"
    with pytest.raises(ValueError, match="set_isa.*sse9.*avx512_vnni"):
        lcs_core.set_isa("sse9")
    lcs_core.set_isa("amx")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"w0": [1.0]}, TypeError, "w0 must be a NumPy array, got list"),
        ({"w0": W[::-1]}, ValueError, "w0 is not C-contiguous; pass numpy.ascontiguousarray"),
        ({"w0": np.zeros(13, np.uint8)[1:].view(np.float32)}, ValueError, "w0 is not aligned.*copy"),
        ({"w0": W.astype(float), "w1": None}, TypeError, "w0 must be float32, .*got float64"),
        ({"w0": W.astype(">f4"), "w1": None}, TypeError, "w0 must be float32, .*got >f4"),
        ({"w1": W[:2]}, ValueError, r"w1 has shape \(2,\), expected \(3,\)"),
        ({"w1": W.astype(np.float16)}, TypeError, "w1 is float16, expected float32"),
        ({"alpha": -0.1}, ValueError, r"alpha must lie in \[0, 1\], got -0.1"),
        ({"alpha": float("nan")}, ValueError, r"alpha must lie in \[0, 1\], got nan"),
        ({"keep": 4}, ValueError, r"keep must lie in \[0, 3\], got 4"),
        ({"keep": -1}, ValueError, r"keep must lie in \[0, 3\], got -1"),
        ({"keep": 2**70}, ValueError, r"keep must lie in \[0, 3\], got 1180591620717411303424"),
        ({"keep": 1.0}, TypeError, "keep must be an integer, got 1.0"),
        ({"keep": np.array([1])}, TypeError, "keep must be an integer"),
        ({"dtype": "uint16"}, TypeError, "dtype must be .*got 'uint16'"),
        ({"dtype": "no such"}, TypeError, "dtype must be .*got 'no such'"),
        ({"threads": 0}, ValueError, r"threads must lie in \[1, 1024\], got 0"),
    ],
)
def test_bad_arguments(change, error, words):
    with pytest.raises(error, match=f"lcs_core.interpolate_prune: {words}"):
        lcs_core.interpolate_prune(**({"w0": W, "w1": W, "alpha": 0.5, "keep": 1} | change))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"w1s": [W]}, ValueError, "w1s has 1 layers, expected 2"),
        ({"w1s": [W, W[:2]]}, ValueError, r"w1s\[1\] has shape \(2,\), expected \(3,\)"),
        ({"w0s": [W, W.astype(np.float16)]}, TypeError, r"w0s\[1\] is float16, expected float32"),
        ({"keep": 7}, ValueError, r"keep must lie in \[0, 6\], got 7"),
        ({"keep": [1, 4]}, ValueError, r"keep\[1\] must lie in \[0, 3\], got 4"),
        ({"keep": [1]}, ValueError, "keep has 1 layers, expected 2"),
    ],
)
def test_bad_lists(change, error, words):
    with pytest.raises(error, match=f"lcs_core.interpolate_prune_foreach: {words}"):
        lcs_core.interpolate_prune_foreach(**({"w0s": [W, W], "w1s": [W, W], "alpha": 0.5, "keep": 1} | change))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"mask_bits": WORD.view(np.int32)}, TypeError, "mask_bits must be uint32, got int32"),
        ({"mask_bits": np.zeros(2, np.uint32)}, ValueError, r"mask_bits must have shape \(1,\) for 3 weights"),
        ({"w1": None}, ValueError, "w0 and w1 come together"),
        ({"line": False}, ValueError, "w0 and w1 come together and on a line"),
        ({"w0": W[:2]}, ValueError, r"w0 has shape \(2,\)"),
        ({"dtype": "float16"}, TypeError, "w0 is float32, expected float16"),
    ],
)
def test_bad_gradients(change, error, words):
    arguments = {"grad": W, "w0": W, "w1": W, "alpha": 0.5, "mask_bits": WORD} | change
    with pytest.raises(error, match=f"lcs_core.interpolate_prune_backward: {words}"):
        lcs_core.interpolate_prune_backward(**arguments)


def test_other_threads_run_meanwhile():
    """A call lets go of the interpreter, else the thread below would make all of its calls before this one goes on."""
    w, inside, stop, calls = np.ones(100_000, np.float32), threading.Event(), threading.Event(), 0

    def work():
        nonlocal calls
        inside.set()
        while not stop.is_set() and calls < 10_000:
            lcs_core.interpolate_prune(w, w, 0.5, 50_000)
            calls += 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # nobody is made to let go
    try:
        thread = threading.Thread(target=work)
        thread.start()
        inside.wait()
        stop.set()
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert calls < 10_000


def test_calls_from_many_threads_agree():
    rng = np.random.default_rng(1)
    w0, w1 = rng.standard_normal((2, 100_000)).astype(np.float32)
    expected = lcs_core.interpolate_prune(w0, w1, 0.3, 12_345)[0]
    found = []
    pool = [
        threading.Thread(target=lambda n=n: found.append(lcs_core.interpolate_prune(w0, w1, 0.3, 12_345, threads=n)[0]))
        for n in (1, 2, 3, 5, 8)
    ]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    assert len(found) == len(pool) and all((w == expected).all() for w in found)
