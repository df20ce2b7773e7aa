import pytest

from .host import build


@pytest.fixture(scope="session")
def objects(tmp_path_factory):
    """The folder that all builds share."""
    return tmp_path_factory.mktemp("simt")


@pytest.fixture(scope="session")
def kernels(objects):
    return build(objects / "as_they_are")
