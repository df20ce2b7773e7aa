import pytest
import torch


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


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
