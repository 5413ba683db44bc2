"""The safetensors files of a Hugging Face folder, read one tensor at a time.

Weights are read through short-lived maps, so a model of any size costs the memory of what is in
use.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gwq_export.arch.spec import Arch
from gwq_export.errors import GwqError
from gwq_export.files import read_json

if TYPE_CHECKING:
    import torch

Part = tuple[Any, ...]  # index of a part of a stored tensor, () for all of it


class Shards:
    """The tensors of a folder's checkpoint under the names of `arch`.

    Every matrix of an expert has a name of its own, however the checkpoint stores it. Raises
    GwqError.
    """

    shapes: dict[str, tuple[int, ...]]  # full tensor name -> shape

    def __init__(self, folder: Path, arch: Arch):
        self._arch = arch
        self.shapes = {}
        self._places: dict[str, tuple[Path, str, Part]] = {}  # -> (file, name there, part of it)
        for path in _files(folder):
            self._add(path)
        self._add_prefix()

    def _add(self, path: Path) -> None:
        with _open(path) as f:
            for stored in f.keys():  # noqa: SIM118 (not a dict)
                stored_shape = tuple(f.get_slice(stored).get_shape())
                for name, shape, part in self._matrices(stored, stored_shape):
                    self._places[name] = (path, stored, part)
                    self.shapes[name] = shape

    def _matrices(
        self, stored: str, shape: tuple[int, ...]
    ) -> list[tuple[str, tuple[int, ...], Part]]:
        """[(name, shape, part)] of what a checkpoint holds as one tensor.

        Of experts that may be the matrices of all of them, or two matrices (gate and up) of all.
        """
        name = stored
        for old, new in self._arch.renamed:
            name = name.replace(old, new)
        layer, _, kind = name.rpartition(".experts.")
        fused = len(shape) == 3 and kind in ("gate_up_proj", "down_proj")
        if not self._arch.experts or not fused:
            return [(name, shape, ())]
        experts, stored_rows, cols = shape
        projections = kind.removesuffix("_proj").split("_")  # ["gate", "up"] or ["down"]
        rows = stored_rows // len(projections)
        return [
            (
                f"{layer}.experts.{j}.{projection}_proj.weight",
                (rows, cols),
                (j, slice(i * rows, (i + 1) * rows)),
            )
            for j in range(experts)
            for i, projection in enumerate(projections)
        ]

    def _add_prefix(self) -> None:
        """Complete the names of a checkpoint that was saved from the bare decoder, as GPT-2's."""
        prefix = self._arch.layers.partition(".")[0] + "."
        embed = self._arch.embed
        if embed not in self._places and embed.removeprefix(prefix) in self._places:
            self._places = {prefix + name: place for name, place in self._places.items()}
            self.shapes = {prefix + name: shape for name, shape in self.shapes.items()}

    def read(self, name: str) -> torch.Tensor:
        """A tensor in its stored type."""
        from safetensors import SafetensorError

        path, stored, part = self._places[name]
        try:
            file = _open(path)
            return file.get_slice(stored)[part] if part else file.get_tensor(stored)
        except SafetensorError as e:
            raise GwqError(
                f"{path}: tensor {name} cannot be read ({e}); download the model again"
            ) from None


def _files(folder: Path) -> list[Path]:
    """The folder's safetensors files: those that its index names, if it has one."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index, "the shard index").get("weight_map")
        if not isinstance(weight_map, dict):
            raise GwqError(f"{index}: no weight_map; download the model again")
        return sorted({folder / str(file) for file in weight_map.values()})
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise GwqError(
            f"{folder}: no *.safetensors; "
            "load the model with transformers and save it with save_pretrained, which writes them"
        )
    return files


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(path), "pt")
    except (OSError, SafetensorError) as e:
        raise GwqError(f"{path}: cannot be read ({e}); download the model again") from None
