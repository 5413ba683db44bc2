"""Files of the tests of draft models and of devices."""

import pytest


@pytest.fixture(scope="module")
def path(exported):
    return exported(type="gwq4")[0]


@pytest.fixture(scope="module")
def bundled(path):
    """Path of the bundled model at 4 bits, with the default outliers."""
    return path


@pytest.fixture(scope="module")
def smaller(exported):
    """The same model in fewer bits: often, but not always, of the same mind."""
    return exported(type="gwq2")[0]


@pytest.fixture
def tiny_path(tiny, exported):
    """tiny_path(name) -> the file of a random model."""

    def make(name="llama"):
        return exported(tiny(name), type="gwq4", outliers=0.02, samples=2, ctx=64)[0]

    return make
