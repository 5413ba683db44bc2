"""A Hugging Face model on disk: its config, and its weights one tensor at a time."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gwq_export.arch.layout import arrangement
from gwq_export.arch.parts import TensorRow
from gwq_export.errors import GwqError
from gwq_export.hf.lora import Adapter
from gwq_export.hf.model_class import QUANTIZED, tensors_of
from gwq_export.hf.model_config import ModelConfig
from gwq_export.hf.shards import Shards, matrices
from gwq_export.hf.strangers import refuse_folder, refuse_tensors

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

# buffers that old checkpoints carry
_IGNORED = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$|\.(attn|attention)\.bias$")
_MODEL_FILES = (".json", ".safetensors", ".model", ".jinja")
_ROWS = 4096  # of a matrix that are compared at once
log = logging.getLogger("gwq_export")


class Source(ModelConfig):
    """A model's config and weights. Every tensor's shape was compared with the config.

    Raises GwqError for a model that is not supported, not whole or not consistent.
    """

    again = "download the model again"  # what to do about weights that are not as they should be

    tied: bool  # the head is the embedding
    _adapter: Adapter | None = None
    _elsewhere: Mapping[str, str] = MappingProxyType({})  # tensor -> the one that stands for it

    def __init__(self, folder: str | os.PathLike[str]):
        refuse_folder(Path(folder))
        super().__init__(folder)
        self._shapes = self._find_tensors()  # full tensor name -> shape
        refuse_tensors(self.folder, self.place, self._shapes)
        self.tied = self._tie()
        self._check_tensors()

    # --- where the weights are; a subclass may have them elsewhere --------------------------------

    @property
    def place(self) -> str | Path:
        """Where the weights are, for messages."""
        return self.folder

    @property
    def provenance(self) -> dict[str, str]:
        """{name: value} of gwq.* keys: where weights come from, if not plain from the folder."""
        return self._origin() | (self._adapter.provenance if self._adapter else {})

    @property
    def files(self) -> list[tuple[str, int, int]]:
        """[(name, bytes, time of last change in ns)] of all files that decide the weights."""
        return [*self._own_files(), *(self._adapter.files if self._adapter else [])]

    def adapt(self, adapter: Adapter) -> None:
        """Add an adapter to every tensor that is read. Raises GwqError if it is another model's."""
        transposed = {name for name, row in self._table() if row.transposed}
        adapter.fit(self.arch, self._shapes, transposed, self.tied, self._whole, self._read)
        self._adapter = adapter

    def _origin(self) -> dict[str, str]:
        """The provenance of the model itself."""
        kinds = sorted({coded.scheme.name for coded in self._shards.decoded.values()})
        return {"source_quantized": ", ".join(kinds)} if kinds else {}

    @property
    def _whole(self) -> bool:
        """Whether the model is part of a larger one."""
        return bool(self._class.whole)

    def _own_files(self) -> list[tuple[str, int, int]]:
        """[(name, bytes, time of last change in ns)] of the model and tokenizer files."""
        paths = sorted(p for p in self.folder.iterdir() if p.suffix in _MODEL_FILES)
        return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in paths]

    def transformers_config(self) -> PretrainedConfig:
        """The config by which transformers builds the model."""
        from transformers import AutoConfig

        if self._class.whole:
            return super().transformers_config()
        return AutoConfig.from_pretrained(self.folder)

    def check_vocabulary(self, tokens: dict[str, Any]) -> None:
        """Raise GwqError when the weights are known to be for another vocabulary.

        tokens: the tokenizer's GGUF keys.
        """

    def _find_tensors(self) -> dict[str, tuple[int, ...]]:
        """{full name: shape} of all tensors."""
        self._shards = Shards(self.folder, self.arch, self.config, self._class.whole)
        if self.config.get(QUANTIZED):
            self._check_plain(self._shards.coded)
        return {name: n for name, n in self._shards.shapes.items() if not self._empty_bias(name)}

    def _empty_bias(self, name: str) -> bool:
        """Whether a tensor is a bias of zeros that some quantizers add and the class lacks."""
        return (
            name.endswith(".bias")
            and self._shards.is_decoded(f"{name.removesuffix('.bias')}.weight")
            and name not in self._needed
            and not self._read(name).any()
        )

    def _check_plain(self, coded: list[str]) -> None:
        """Raise GwqError when weights are quantized in a way that is not known.

        A `quantization_config` that is left over from a training gives a warning.
        """
        if self._shards.decoded and not coded:
            return
        missing = next(
            (name for name in sorted(self._needed) if name not in self._shards.shapes), None
        )
        settings = self.config[QUANTIZED]
        method = settings.get("quant_method") if isinstance(settings, dict) else settings
        if coded or missing:
            why = f"tensor {coded[0]} is coded" if coded else f"there is no tensor {missing}"
            raise GwqError(
                f"{self.folder}: the model is quantized already ({QUANTIZED} in config.json says "
                f"{method!r}, and {why}); export the original FP16/BF16/FP32 model"
            )
        log.warning(
            "%s: config.json has a left-over %s (%r), but all weights are plain: exported as "
            "they are",
            self.folder,
            QUANTIZED,
            method,
        )

    def _read(self, name: str) -> torch.Tensor:
        """A tensor in its stored type."""
        return self._shards.read(name)

    # --- weights ----------------------------------------------------------------------------------

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor as the checkpoint has it."""
        return self._shapes[name]

    def tensor(self, name: str) -> torch.Tensor:
        """A torch.float32 copy of the tensor.

        Raises GwqError when it is missing, damaged or not a float.
        """
        import torch

        if name not in self._shapes:
            raise GwqError(f"{self.place}: tensor {name} is missing; {self.again}")
        value = self._read(self._elsewhere.get(name, name))
        if not value.is_floating_point():
            raise GwqError(
                f"{self.place}: tensor {name} is {value.dtype}, expected a float type; "
                "export the original model"
            )
        value = value.to(torch.float32, copy=True)
        if self._adapter:
            self._adapter.add(name, value)
        if not torch.isfinite(value.sum()) and not torch.isfinite(value).all():  # sums are quick
            raise GwqError(
                f"{self.place}: tensor {name} holds NaN or infinity; the model is damaged"
            )
        return value

    def block(self, i: int) -> dict[TensorRow, str]:
        """{row: full Hugging Face name} of the rows of block i that are present.

        Every matrix of an expert has a row of its own; they come expert by expert.
        """
        names = {row: self._block_name(i, row) for row in self._rows(i)}
        return {row: name for row, name in names.items() if name in self._shapes}

    def ends(self) -> list[tuple[TensorRow, str]]:
        """(row, Hugging Face name) of everything outside the blocks but the head."""
        return [(row, row.hf) for row in (*self.arch.first, *self.arch.last)]

    def _block_name(self, i: int, row: TensorRow) -> str:
        return f"{self.arch.layers}.{i}.{row.hf}"

    def _rows(self, i: int) -> list[TensorRow]:
        """Rows of block i, each of the experts' once for every expert."""
        of_block = self.arch.rows(self.kinds[i])
        of_experts = [row for row in of_block if "{}" in row.hf]
        rows = [row for row in of_block if row not in of_experts]
        for j in range(self.dims.get("experts", 0)):
            rows += [row.of_expert(j) for row in of_experts]
        return rows

    # --- which tensors there must be --------------------------------------------------------------

    def _tie(self) -> bool:
        """Whether the head is the embedding, by the rules of transformers.

        Where the config ties them, the checkpoint may hold either of them for both, and two that
        differ stay apart. Raises GwqError for an untied model without a head.
        """
        embed, head = self.arch.embed, self.arch.head
        both = embed in self._shapes and head in self._shapes
        if not self.config.get("tie_word_embeddings"):
            if head not in self._shapes:
                raise GwqError(
                    f"{self.place}: tensor {head} is missing, and the config does not tie it to "
                    f"the embedding (tie_word_embeddings); {self.again}"
                )
            return False
        if head in self._shapes and not both:
            self._shapes[embed] = self._shapes.pop(head)
            self._elsewhere = {embed: head}
        if not both or self._equal(embed, head):
            return True
        log.warning(
            "%s: tie_word_embeddings is set, but %s and %s differ: the head is exported as it is, "
            "as transformers has it",
            self.place,
            head,
            embed,
        )
        return False

    def _equal(self, a: str, b: str) -> bool:
        """Whether two tensors hold the same values."""
        if self._shapes[a] != self._shapes[b]:
            return False
        pairs = zip(self._read(a).split(_ROWS), self._read(b).split(_ROWS), strict=True)
        return all(bool((x.float() == y.float()).all()) for x, y in pairs)

    def _table(self) -> Iterator[tuple[str, TensorRow]]:
        """(name, row) of every tensor that the architecture's table knows, the head among them."""
        for row, name in self.ends():
            yield name, row
        yield self.arch.head, self.arch.first[0]
        for i in range(self.layers):
            for row in self._rows(i):
                yield self._block_name(i, row), row

    @cached_property
    def _needed(self) -> set[str]:
        """The tensors of the class that transformers makes of the config, but the head."""
        head = self.arch.head
        of_class = tensors_of(self.transformers_config(), head, self.place)
        parts = (matrices(self.arch, name, shape) for name, shape in of_class.items())
        return {name for part in parts for name, *_ in part} - {head}

    def _check_tensors(self) -> None:
        """Raise GwqError unless exactly the tensors of the config are there, in the right size."""
        known: dict[str, TensorRow] = {}
        for name, row in self._table():
            if name not in self._shapes and not row.optional and name != self.arch.head:
                raise GwqError(f"{self.place}: tensor {name} is missing; {self.again}")
            known[name] = row
        for name in sorted(self._needed):
            if name not in self._shapes:
                raise GwqError(f"{self.place}: tensor {name} is missing; {self.again}")
        for name, shape in self._shapes.items():
            if name not in known:
                if _IGNORED.search(name):
                    continue
                raise GwqError(
                    f"{self.place}: tensor {name} has no place in {self.arch.gguf}; "
                    "this variant is not supported"
                )
            if name not in self._needed and name != self.arch.head:
                raise GwqError(
                    f"{self.place}: tensor {name} does not fit the config, by which there is none: "
                    "correct the config, or leave the tensor out"
                )
            row = known[name]
            arrange = arrangement(row, self.arch, self.dims, self.heads)
            expected = arrange.checkpoint_shape(tuple(self.dims[d] for d in row.shape[-2:]))
            if shape != expected:
                raise GwqError(
                    f"{self.place}: tensor {name} has shape {shape}, "
                    f"but {expected} would fit the config"
                )
