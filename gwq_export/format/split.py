"""A model in several GGUF files, as llama-gguf-split makes them.

Part i of n, counted from 1, is called NAME-0000i-of-0000n.gguf. Every part says `split.no` (counted
from 0) and `split.count`, and how many tensors all parts hold together; the first has the model's
keys.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gwq_export.errors import GwqError

MAX_PARTS = 99_999  # five digits
_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
# names of pieces that were cut by bytes, which only `cat` joins again
_PIECE = re.compile(r"(\.part[-_]?\d+(of\d+)?|-split-[a-z]{1,2}|\.gguf\.\d{1,3})(\.bin)?$", re.I)
_ALL = "download all parts into one folder, under the names that they have"


def is_piece(path: str) -> bool:
    """Whether a file's name is that of a piece of a file that was cut by bytes."""
    return bool(_PIECE.search(os.path.basename(path)))


def later_parts(path: str, metadata: Mapping[str, Any]) -> list[str]:
    """Paths of the other parts of a model whose first part is `path`; [] for a whole file.

    Raises GwqError when `path` is a later part, when its name or its keys do not say where the
    others are, and when one of them is missing.
    """
    count = metadata.get("split.count", 0)
    no = metadata.get("split.no", 0)
    if type(count) is not int or type(no) is not int or count > MAX_PARTS:
        raise GwqError(f"split.no = {no!r:.20} of split.count = {count!r:.20} cannot be: {_ALL}")
    if count < 2:
        return []
    name = _NAME.fullmatch(os.path.basename(path))
    if no:
        first = f"{name[1] if name else 'NAME'}-00001-of-{count:05}.gguf"
        raise GwqError(
            f"this is part {no + 1} of a model in {count} files: give the first, {first}"
        )
    if name is None or (int(name[2]), int(name[3])) != (1, count):
        raise GwqError(
            f"this is the first of {count} parts of a model, but its name does not end in "
            f"-00001-of-{count:05}.gguf, so the others cannot be found: {_ALL}"
        )
    parts = [f"{name[1]}-{i:05}-of-{count:05}.gguf" for i in range(2, count + 1)]
    folder = os.path.dirname(path)
    paths = [os.path.join(folder, part) for part in parts]
    missing = [part for part, p in zip(parts, paths, strict=True) if not os.path.isfile(p)]
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise GwqError(
            f"this is the first of {count} parts of a model, and {missing[0]}{more} "
            f"is not beside it: {_ALL}"
        )
    return paths


def check_part(first: Mapping[str, Any], metadata: Mapping[str, Any], no: int) -> None:
    """Raise GwqError unless `metadata` is that of part `no` (counted from 0) of the model.

    first: the metadata of its first part.
    """
    found = metadata.get("split.no"), metadata.get("split.count")
    if found != (no, first["split.count"]):
        raise GwqError(
            f"by its name this is part {no + 1} of {first['split.count']}, but its keys say "
            f"split.no = {found[0]!r:.20}, split.count = {found[1]!r:.20}: {_ALL}"
        )


def check_tensors(metadata: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise GwqError unless the parts hold as many tensors as the first part says.

    metadata: of the first part; names: of the tensors of all parts. So what is missing is never
    taken for what the model does not have.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise GwqError(f"tensor {name} is in two parts of the model: {_ALL}")
        seen.add(name)
    wanted = metadata.get("split.tensors.count", len(names))
    if wanted != len(names):
        raise GwqError(
            f"the {metadata['split.count']} parts of the model hold {len(names)} tensors, "
            f"and split.tensors.count says {wanted!r:.20}: {_ALL}"
        )
