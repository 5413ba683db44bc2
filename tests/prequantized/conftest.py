"""A model for the libraries that make or read quantized ones."""

import pytest

from tests.support.models import save_tiny


@pytest.fixture(scope="session")
def round_model(tmp_path_factory):
    """A model whose widths 32 divides, as the libraries want them."""
    folder = tmp_path_factory.mktemp("round")
    return save_tiny(folder, "Qwen2Config", intermediate_size=192, hidden_size=128, head_dim=32)
