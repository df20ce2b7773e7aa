"""Memory of large results, which is kept for the next ones."""

import io
import multiprocessing
import threading

import pytest
import torch
from torch.nn import functional as F

from lcs_kernels import line_norm, release_memory, width_conv2d

MIB = 1 << 20
NEEDED = (2, 11)  # torch
pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < NEEDED, reason="torch before 2.11 keeps no results' memory"
)

W = torch.ones(32, 1, 1, 1)


@pytest.fixture(autouse=True)
def nothing_kept():
    release_memory()
    yield
    release_memory()


def result(mib, value=1.0, last=False):
    """A float32 result of so many MiB, of 32 channels."""
    x = torch.full((1, 1, mib * MIB // (32 * 4 * 64), 64), value)
    return width_conv2d(x.contiguous(memory_format=torch.channels_last) if last else x, W)


@pytest.mark.parametrize("last", [False, True])
def test_what_no_tensor_holds_is_used_again(last):
    y = result(8, last=last)
    at = y.data_ptr()
    view = y[:, :3]
    del y
    other = result(8, 2.0, last)
    assert other.data_ptr() != at and view.eq(1).all() and other.eq(2).all()
    del view
    again = result(8, 3.0, last)
    assert again.data_ptr() == at and again.eq(3).all() and other.eq(2).all()
    assert release_memory() == 0  # all is held
    del again, other
    assert (release_memory(), release_memory()) == (16 * MIB, 0)


def test_norms_share_it():
    y = result(8)
    at = y.data_ptr()
    del y
    x = torch.randn(2, 16, 256, 256)
    assert line_norm(x, None, None, None, None, None, 16).data_ptr() == at


def test_no_more_than_128_mib_are_kept_those_freed_last():
    results = [result(24, float(i)) for i in range(8)]
    places = [y.data_ptr() for y in results]
    while results:
        results.pop(0)
    assert result(24).data_ptr() == places[-1]
    assert release_memory() == 5 * 24 * MIB


def test_small_ones_are_not_kept():
    result(1)
    assert release_memory() == MIB
    width_conv2d(torch.ones(1, 1, 32, 31), W)  # 124 KiB
    assert release_memory() == 0


def test_results_are_tensors_like_others():
    y = result(4)
    buffer = io.BytesIO()
    torch.save(y, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer), y)
    assert y.clone().share_memory_().is_shared() and y.numpy().sum() == y.numel()
    assert y.add_(1).eq(2).all() and y.is_contiguous() and y.untyped_storage().nbytes() == 4 * MIB
    x = torch.ones(1, 1, 512, 64, requires_grad=True)
    width_conv2d(x, W).sum().backward()
    assert x.grad.eq(32).all()


def test_threads_never_share_a_block():
    wrong = []

    def work(value):
        for i in range(20):
            y = result(4 + 4 * (i % 2), value)
            if not y.eq(value).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _in_a_child(held, queue):
    torch.set_num_threads(1)  # torch's own pool does not outlive a fork
    held.clear()  # of the parent
    queue.put(bool(result(8, 5.0).eq(5).all()) and release_memory() == 0)


def test_a_forked_process_keeps_nothing():
    context = multiprocessing.get_context("fork")
    held, queue = [result(8)], context.Queue()
    kept = result(8, 2.0)
    child = context.Process(target=_in_a_child, args=(held, queue))
    child.start()
    assert queue.get(timeout=60)
    child.join(60)
    assert child.exitcode == 0 and held[0].eq(1).all() and kept.eq(2).all()


def test_sizes_without_elements():
    y = width_conv2d(torch.ones(0, 1, 700, 64), W)
    assert y.shape == (0, 32, 700, 64) and y.stride() == F.conv2d(torch.ones(0, 1, 700, 64), W).stride()
