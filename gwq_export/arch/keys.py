"""GGUF keys of an open file, checked as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

import numpy as np

from gwq_export.errors import GwqError

MAX_SIZE = 1 << 24  # of a model's dimensions, unless said otherwise


class File(Protocol):
    """What `read_config` needs of a format.reader.Reader."""

    @property
    def path(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, Any]: ...


class Keys:
    """The keys "<prefix>.*" of a file. What cannot be raises GwqError."""

    def __init__(self, file: File, prefix: str):
        self.file = file
        self.prefix = prefix

    def refuse(self, key: str, value: object) -> NoReturn:
        """Raise GwqError for what a key says."""
        raise GwqError(
            f"metadata key {self.prefix}.{key} is {value!r}, which cannot be; "
            "export the model again"
        )

    def _checked(self, key: str, default: Any, low: float, high: float) -> Any:
        value = self.file.metadata.get(f"{self.prefix}.{key}", default)
        is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            self.refuse(key, value)
        return value

    def integer(
        self, key: str, default: int | None = None, low: int = 1, high: int = MAX_SIZE
    ) -> int:
        """An integer from `low` to `high`; without a default the file has to say it."""
        return int(self._checked(key, default, low, high))

    def number(
        self, key: str, default: float | None = None, low: float = 1e-6, high: float = 1e6
    ) -> float:
        """A number from `low` to `high`; without a default the file has to say it."""
        return float(self._checked(key, default, low, high))

    def flag(self, key: str, default: bool = True) -> bool:
        """A truth value."""
        value = self.file.metadata.get(f"{self.prefix}.{key}", default)
        if not isinstance(value, bool):
            self.refuse(key, value)
        return value

    def integers(self, key: str, count: int, high: int) -> list[int] | None:
        """A list of `count` integers from 0 to `high`, None where the file has no list there."""
        value = self.file.metadata.get(f"{self.prefix}.{key}")
        if not isinstance(value, (np.ndarray, list)):
            return None
        values = np.asarray(value)
        if values.shape != (count,) or values.dtype.kind not in "iu":
            self.refuse(key, value)
        if values.min() < 0 or values.max() > high:
            self.refuse(key, value)
        return [int(v) for v in values]

    def flags(self, key: str, count: int) -> list[bool] | None:
        """A list of `count` truth values, None where the file has no list there."""
        value = self.file.metadata.get(f"{self.prefix}.{key}")
        if not isinstance(value, (np.ndarray, list)):
            return None
        values = np.asarray(value)
        if values.shape != (count,) or values.dtype.kind not in "biu":
            self.refuse(key, value)
        return values.astype(bool).tolist()
