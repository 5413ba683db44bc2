"""Quick measurements of the memory roof."""

import pytest

from gwq_export.bench import roof


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(roof, "WORKING_SET", 4 << 20)
    monkeypatch.setattr(roof, "ROUNDS", 1)
