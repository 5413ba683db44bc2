"""A folder of a LoRA adapter (PEFT), whose matrices are added to a model's when they are read."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gwq_export.arch.spec import Arch
from gwq_export.errors import GwqError
from gwq_export.files import read_json
from gwq_export.hf.shards import PLAIN, Part, Shape, matrices, open_file, read_tensor

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_WEIGHT = ".base_layer.weight"
_ROWS = 512  # of a matrix that are worked on at once
# of the text model in a larger one, by any of its names
_TEXT = re.compile(r"(?:model\.)?language_model\.(?:model\.)?(?=layers\.)")
# keys of the config that say nothing about how a finished adapter is added
_OF_TRAINING = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "corda_config", "eva_config"),
        *("exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern"),
        *("layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config"),
        *("megatron_config", "megatron_core", "peft_version", "qalora_group_size", "revision"),
        *("runtime_config", "target_modules", "task_type", "velora_config"),
    }
)
_READ = frozenset({"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"})
# key -> what it may be beside false and nothing; others change the base model or the sum
_HARMLESS = {"bias": ("none",), "init_lora_weights": (True, "gaussian", "eva", "orthogonal")}
INSTEAD = "merge it with peft's merge_and_unload(), save the result, and export that"


@dataclass(frozen=True)
class Pair:
    """What is added to one matrix of the model: scale x B A."""

    a: str  # name of a tensor (rank, columns)
    b: str  # of one (rows, rank)
    part: Part  # which of the product's rows
    scale: float
    transposed: bool  # the checkpoint has (columns, rows)


def _own_name(name: str) -> str:
    """What the model calls a module or tensor of an adapter."""
    return name.removeprefix(_PREFIX)


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors hold the same values, of which both may be rounded to another type."""
    pairs = zip(a.split(_ROWS), b.split(_ROWS), strict=True)
    return all(bool((x.float() == y.to(x.dtype).float()).all()) for x, y in pairs)


class Adapter:
    """The adapter in `folder`, to be added to a model. Raises GwqError."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise GwqError(f"--lora {folder}: no such folder; give the folder of an adapter")
        config = read_json(self.folder / CONFIG, "the adapter's config")
        self._check(config)
        self._rank, self._ranks = config.get("r", 8), config.get("rank_pattern") or {}
        self._alpha, self._alphas = config.get("lora_alpha", 8), config.get("alpha_pattern") or {}
        self._rooted = bool(config.get("use_rslora"))
        if not isinstance(self._ranks, dict) or not isinstance(self._alphas, dict):
            raise self._refuse("rank_pattern and alpha_pattern are to be objects")
        self._path = self.folder / WEIGHTS
        if not self._path.is_file():
            raise self._refuse(f"there is no {WEIGHTS}; save it with save_pretrained")
        # tensors of the model itself, of ends that the adapter changes
        self._copies: list[str] = []
        self._modules = self._find()
        self._pairs: dict[str, Pair] = {}

    def _refuse(self, what: str) -> GwqError:
        return GwqError(f"--lora {self.folder}: {what}")

    def _check(self, config: Mapping[str, Any]) -> None:
        """Refuse an adapter of which more is asked than to add a product to a matrix."""
        kind = config.get("peft_type")
        if kind != "LORA":
            raise self._refuse(f"a PEFT adapter of type {kind!r} is not merged here: {INSTEAD}")
        for key, value in config.items():
            if key in _OF_TRAINING | _READ or not value or value in _HARMLESS.get(key, ()):
                continue
            raise self._refuse(f"its {key} = {value!r} is not merged here: {INSTEAD}")

    def _find(self) -> dict[str, tuple[Shape, Shape]]:
        """{module: shapes of its A and B}, of every module that the adapter changes."""
        shapes: dict[str, Shape] = {}
        with open_file(self._path) as f:
            for name in f.keys():  # noqa: SIM118 (not a dict)
                tensor = f.get_slice(name)
                if name.endswith((_WEIGHT, ".embed_tokens.weight", ".wte.weight")):
                    self._copies.append(name)
                    continue
                if not name.endswith((_A, _B)):
                    raise self._refuse(f"its tensor {name} is not merged here: {INSTEAD}")
                shape = tuple(tensor.get_shape())
                if tensor.get_dtype() not in PLAIN or len(shape) != 2:
                    raise self._refuse(f"its tensor {name} is no matrix of floats")
                shapes[name] = shape
        found = {}
        for module in sorted({name.removesuffix(_A).removesuffix(_B) for name in shapes}):
            if module + _A not in shapes or module + _B not in shapes:
                raise self._refuse(f"{module} has only one of {_A[1:]} and {_B[1:]}")
            a, b = shapes[module + _A], shapes[module + _B]
            if not a[0] == b[1] == self._setting(self._rank, self._ranks, module):
                raise self._refuse(
                    f"{module} has matrices of {a[0]}x{a[1]} and {b[0]}x{b[1]}, which do not fit"
                    f" the rank in {CONFIG}"
                )
            found[module] = (a, b)
        if not found:
            raise self._refuse(f"{WEIGHTS} holds no tensor")
        return found

    def _setting(self, usual: Any, patterns: Mapping[str, Any], module: str) -> float:
        """The usual number, or that of the first pattern that fits the end of a module's name."""
        value = usual
        for pattern, own in patterns.items():
            try:
                fits = re.match(rf"(.*\.)?({pattern})$", module.removeprefix(_PREFIX))
            except re.error as e:
                raise self._refuse(f"pattern {pattern!r} is no regular expression ({e})") from None
            if fits:
                value = own
                break
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self._refuse(f"{module} has rank or alpha {value!r}, expected a positive number")
        return float(value)

    def _scale(self, module: str) -> float:
        rank = self._setting(self._rank, self._ranks, module)
        alpha = self._setting(self._alpha, self._alphas, module)
        return alpha / (math.sqrt(rank) if self._rooted else rank)

    # --- the model that it is added to ------------------------------------------------------------

    def fit(
        self,
        arch: Arch,
        shapes: Mapping[str, Shape],
        transposed: Collection[str],
        tied: bool,
        whole: bool,
        read: Callable[[str], torch.Tensor],
    ) -> None:
        """Find the model's matrix for every module. Raises GwqError where there is none.

        shapes: of the model's tensors; transposed: those that lie as (columns, rows); tied: the
        head is the embedding; whole: the text model is part of a larger one; read: reads a tensor
        of the model.
        """
        for stored in self._copies:
            name = _own_name(stored).replace(_WEIGHT, ".weight")
            theirs = read_tensor(self._path, stored)
            if name not in shapes or shapes[name] != theirs.shape or not _equal(read(name), theirs):
                raise self._refuse(f"its tensor {stored} is not the model's own: {INSTEAD}")
        for module, (a, b) in self._modules.items():
            own = _own_name(module)
            if whole:
                own = _TEXT.sub(arch.layers.partition(".")[0] + ".", own, count=1)
            for name, shape, part in matrices(arch, f"{own}.weight", (b[0], a[1])):
                if name not in shapes:
                    raise self._refuse(f"{module} is not in the model: give that of the adapter")
                if name in (arch.embed, arch.head) and (tied or name == arch.embed):
                    raise self._refuse(f"{module} is the embedding, which is not merged: {INSTEAD}")
                lies = shape[::-1] if name in transposed else shape
                if shapes[name] != lies:
                    raise self._refuse(
                        f"{module} changes a matrix of {lies}, the model's is {shapes[name]}: give"
                        " the model of the adapter"
                    )
                scale = self._scale(module)
                self._pairs[name] = Pair(module + _A, module + _B, part, scale, name in transposed)

    def add(self, name: str, value: torch.Tensor) -> None:
        """Add in place what the adapter has for a tensor, float32 as the checkpoint has it."""
        pair = self._pairs.get(name)
        if pair is None:
            return
        a, b = (read_tensor(self._path, n).float() for n in (pair.a, pair.b))
        if pair.part:
            b = b[pair.part]
        into = value.T if pair.transposed else value
        for first in range(0, len(b), _ROWS):
            rows = slice(first, first + _ROWS)
            into[rows].add_(b[rows] @ a, alpha=pair.scale)

    @property
    def provenance(self) -> dict[str, str]:
        """For gwq.* keys: the name of the folder."""
        return {"source_lora": self.folder.resolve().name}

    @property
    def files(self) -> list[tuple[str, int, int]]:
        """[(whole path, bytes, time of last change in ns)] of the adapter's files."""
        paths = [(self.folder / name).resolve() for name in (CONFIG, WEIGHTS)]
        return [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
