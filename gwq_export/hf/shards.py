"""The safetensors files of a Hugging Face folder, read one tensor at a time.

Weights are read through short-lived maps, so a model of any size costs the memory of what is in
use. Matrices that come quantized are decoded when they are read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gwq_export.arch.spec import Arch
from gwq_export.errors import GwqError, NoMemory, about, one_line, short_of_memory
from gwq_export.files import read_json
from gwq_export.hf.model_class import QUANTIZED
from gwq_export.hf.text_part import left_out, text_names
from gwq_export.prequantized.coded import Coded, find
from gwq_export.prequantized.methods import schemes
from gwq_export.prequantized.scheme import Piece

if TYPE_CHECKING:
    import torch

Part = tuple[Any, ...]  # index of a part of a stored tensor, () for all of it
Shape = tuple[int, ...]
WEIGHTS = "model.safetensors"
PLAIN = {"F64", "F32", "F16", "BF16"}  # safetensors' names of types that need no decoding
log = logging.getLogger("gwq_export")


class Shards:
    """The tensors of a folder's checkpoint under the names of `arch`.

    config: what the folder's config.json holds. Every matrix of an expert has a name of its own,
    however the checkpoint stores it. whole: class of a larger model, of which only the text model
    is taken; a warning names the rest. Raises GwqError.
    """

    shapes: dict[str, Shape]  # full tensor name -> shape
    coded: list[str]  # names in the file of tensors that are not plain floats
    decoded: dict[str, Coded]  # name -> the quantized matrix that it is decoded from

    def __init__(self, folder: Path, arch: Arch, config: Mapping[str, Any], whole: str = ""):
        self._folder = folder
        self._arch = arch
        self._files: dict[str, Path] = {}  # name of a stored tensor -> where it lies
        stored = self._stored(_files(folder, config))
        self.coded = [name for name, piece in stored.items() if piece.dtype not in PLAIN]
        self.decoded = {}
        if self.coded and config.get(QUANTIZED):
            with about(f"{folder}: the model is quantized ({QUANTIZED} in config.json)"):
                self.decoded, used = find(stored, schemes(config[QUANTIZED]), self._read_stored)
            stored = {name: piece for name, piece in stored.items() if name not in used}
            self.coded = [name for name in self.coded if name in stored]
        self.shapes = {}
        self._places: dict[str, tuple[str, Part]] = {}  # -> (name of the whole, part of it)
        shapes = {name: piece.shape for name, piece in stored.items()}
        for whole_name, shape in (shapes | {n: c.shape for n, c in self.decoded.items()}).items():
            for name, size, part in matrices(arch, whole_name, shape):
                self._places[name] = (whole_name, part)
                self.shapes[name] = size
        if whole:
            self._take_text(folder, whole, int(config["num_hidden_layers"]))
        else:
            self._add_prefix()

    def _stored(self, files: list[Path]) -> dict[str, Piece]:
        """Every tensor of the files by its name there."""
        stored = {}
        for path in files:
            with open_file(path) as f:
                for name in f.keys():  # noqa: SIM118 (not a dict)
                    tensor = f.get_slice(name)
                    stored[name] = Piece(name, tensor.get_dtype(), tuple(tensor.get_shape()))
                    self._files[name] = path
        return stored

    def _take_text(self, folder: Path, whole: str, blocks: int) -> None:
        """Forget all tensors but those of the text model's `blocks`, which get its own names."""
        kept = text_names(folder, self.shapes, self._arch, blocks)
        others = left_out(self.shapes, kept)
        log.warning(
            "%s: a %s: its text model is exported; left out: %s",
            folder,
            whole,
            ", ".join(f"{part} ({count} tensors)" for part, count in others.items()) or "nothing",
        )
        self.shapes = {new: self.shapes[old] for old, new in kept.items()}
        self._places = {new: self._places[old] for old, new in kept.items()}
        self.coded = [name for name in self.coded if name in kept]

    def _add_prefix(self) -> None:
        """Complete the names of what was saved from the bare decoder, as GPT-2's checkpoint."""
        arch = self._arch
        prefix = arch.layers.partition(".")[0] + "."
        inside = (arch.layers, arch.embed, arch.positions, arch.norm)
        bare = {name.removeprefix(prefix).partition(".")[0] for name in inside}
        for name in [name for name in self.shapes if name.partition(".")[0] in bare]:
            self._places[prefix + name] = self._places.pop(name)
            self.shapes[prefix + name] = self.shapes.pop(name)

    def read(self, name: str) -> torch.Tensor:
        """A tensor in its stored type; one that comes quantized is decoded, float32."""
        whole, part = self._places[name]
        if whole not in self.decoded:
            return self._read_stored(whole, part)
        with about(self._folder):
            value = self.decoded[whole].read(self._read_stored)
        return value[part].clone() if part else value

    def is_decoded(self, name: str) -> bool:
        """Whether there is a tensor of this name, and it comes quantized."""
        return name in self._places and self._places[name][0] in self.decoded

    def _read_stored(self, stored: str, part: Part = ()) -> torch.Tensor:
        """A tensor of a file, or a part of it."""
        return read_tensor(self._files[stored], stored, part)


def read_tensor(path: Path, stored: str, part: Part = ()) -> torch.Tensor:
    """A tensor of a safetensors file, or a part of it. Raises GwqError."""
    from safetensors import SafetensorError

    try:
        file = open_file(path)
        return file.get_slice(stored)[part] if part else file.get_tensor(stored)
    except SafetensorError as e:
        raise GwqError(
            f"{path}: tensor {stored} cannot be read ({e}); download the model again"
        ) from None


def matrices(arch: Arch, stored: str, shape: Shape) -> list[tuple[str, Shape, Part]]:
    """[(name, shape, part)] of what a checkpoint or a class holds as one tensor, `arch`'s names.

    Of experts that may be the matrices of all of them, or two matrices (gate and up) of all; of a
    paired feed-forward layer these two.
    """
    name = stored
    for old, new in arch.renamed:
        name = name.replace(old, new)
    pair = f".{arch.paired_ffn}.input_linear.weight"
    if arch.paired_ffn and name.endswith(pair) and len(shape) == 2:
        rows = shape[0] // 2
        return [
            (
                f"{name[: -len(pair)]}.{arch.paired_ffn}.{projection}_proj.weight",
                (rows, shape[1]),
                part,
            )
            for projection, part in (("gate", (slice(rows),)), ("up", (slice(rows, shape[0]),)))
        ]
    layer, _, kind = name.rpartition(".experts.")
    fused = len(shape) == 3 and kind in ("gate_up_proj", "down_proj")
    if not arch.experts or not fused:
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


def _files(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """The files with the model's weights, by the rules of transformers.

    That is the file that config.json names, else model.safetensors, else the files that an index
    names; whatever else lies in the folder (older shards, adapters, other layouts) is not the
    model.
    """
    named = config.get("transformers_weights")
    names = [str(named)] if named else [WEIGHTS, f"{WEIGHTS}.index.json"]
    if (folder / "adapter_config.json").exists():
        log.warning(
            "%s: adapter_config.json says that an adapter (LoRA) lies there too: it is left out; "
            "give the folder of the adapter as --lora if it belongs to the model",
            folder,
        )
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise GwqError(
            f"{folder}: no {' and no '.join(names)}; save the model there with save_pretrained"
        )
    if path.suffix != ".json":
        return [path]
    weight_map = read_json(path, "the shard index").get("weight_map")
    if not isinstance(weight_map, dict):
        raise GwqError(f"{path}: no weight_map; download the model again")
    return sorted({folder / str(file) for file in weight_map.values()})


def open_file(path: Path) -> Any:
    """A safetensors file, open for torch. Raises GwqError."""
    from safetensors import SafetensorError, safe_open

    try:
        with open(path, "rb"):  # safetensors says of every file that it cannot open that it is gone
            pass
        return safe_open(str(path), "pt")
    except (OSError, SafetensorError) as e:
        if short_of_memory(e):
            raise NoMemory(f"{path}: not enough memory to read it") from None
        there = isinstance(e, OSError) and not isinstance(e, FileNotFoundError)
        reason = (isinstance(e, OSError) and e.strerror) or one_line(e)
        what = "see to its permissions and its disk" if there else "download the model again"
        raise GwqError(f"{path}: cannot be read ({reason}); {what}") from None
