import contextlib
import resource
import signal

import pytest
import torch
from torch.nn import functional as F

from lcs_kernels import line_norm


@pytest.fixture
def tiny(tmp_path):
    """Makes the settings of a run of 6 steps (2 epochs of 3, the last batch smaller) that takes about a second."""
    from lcs.config import TrainConfig

    def make(**changes):
        settings = {
            "data": "synthetic",
            "image_size": 16,
            "limit": 20,
            "batch_size": 8,
            "epochs": 2,
            "threads": 1,
            "device": "cpu",
            "out": tmp_path / "run",
        }
        return TrainConfig(**{**settings, **changes})

    return make


@pytest.fixture
def full_disk():
    """A limit in bytes on the size of files makes the kernel refuse a write half way, as a full disk does."""

    @contextlib.contextmanager
    def limited(size):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)

    return limited


@pytest.fixture
def plain_norms_round_alike(monkeypatch):
    """Lets torch's own norm modules run `line_norm`, so that plain networks equal converted ones bit for bit."""

    def group_norm(x, groups, weight, bias, eps):
        return line_norm(x, weight, None, bias, None, None, groups, eps)

    def instance_norm(x, mean, var, weight, bias, from_input, momentum, eps):
        assert from_input and mean is None
        return group_norm(x, x.shape[1], weight, bias, eps)

    monkeypatch.setattr(F, "group_norm", group_norm)
    monkeypatch.setattr(F, "instance_norm", instance_norm)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
