"""A Hugging Face model on disk: its config, and its weights one tensor at a time."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gwq_export.arch.parts import TensorRow
from gwq_export.arch.registry import ARCHS
from gwq_export.arch.spec import Arch
from gwq_export.errors import GwqError
from gwq_export.files import read_json
from gwq_export.hf.shards import Shards
from gwq_export.hf.strangers import refuse_folder, refuse_tensors

if TYPE_CHECKING:
    import torch

# buffers that old checkpoints carry
_IGNORED = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$|\.(attn|attention)\.bias$")
_MODEL_FILES = (".json", ".safetensors", ".model", ".jinja")


class Source:
    """A model's config and weights. Every tensor's shape was compared with the config.

    Raises GwqError for a model that is not supported, not whole or not consistent.
    """

    again = "download the model again"  # what to do about weights that are not as they should be

    folder: Path
    config: dict[str, Any]  # as saved, with the architecture's names and defaults filled in
    arch: Arch
    layers: int
    vocab: int
    heads: dict[str, int]  # {"heads", "kv_heads"}
    dims: dict[str, int]  # sizes by the names that the architecture's tensor tables use
    tied: bool  # the head is the embedding

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        refuse_folder(self.folder)
        self.config = read_json(self.folder / "config.json", "the config")
        self.arch = self._find_arch()
        self._complete_config()
        self._read_sizes()
        self._shapes = self._find_tensors()  # full tensor name -> shape
        says_tied = bool(self.config.get("tie_word_embeddings"))
        self.tied = self.arch.head not in self._shapes or says_tied
        self._check_tensors()

    # --- config -----------------------------------------------------------------------------------

    def _class_name(self) -> str:
        names = self.config.get("architectures")
        if isinstance(names, list) and names and isinstance(names[0], str):
            return names[0]
        return str(names)

    def _find_arch(self) -> Arch:
        if not self.config.get("architectures"):
            raise GwqError(
                f"{self.folder}/config.json names no class: set architectures to the class that it"
                f' was saved from, such as ["{self._likely_class()}"]'
            )
        name = self._class_name()
        if name not in ARCHS:
            raise GwqError(
                f"{self.folder}: architecture {name} is not supported; "
                f"supported: {', '.join(ARCHS)}"
            )
        return ARCHS[name]

    def _likely_class(self) -> str:
        """A supported class whose name fits the config's model_type."""
        kind = str(self.config.get("model_type")).removesuffix("_text").replace("_", "")
        names = {f"{kind}forcausallm", f"{kind}lmheadmodel"}
        return next((name for name in ARCHS if name.lower() in names), "LlamaForCausalLM")

    def _complete_config(self) -> None:
        """Fill in usual names and defaults; refuse what the runtime does not compute."""
        self.config |= {
            key: self.config[saved]
            for key, saved in self.arch.names.items()
            if saved in self.config
        }
        self.config = self.arch.defaults | self.config
        for key, allowed in self.arch.only.items():
            if key in self.config and self.config[key] not in allowed:
                raise GwqError(
                    f"{self.folder}: {self._saved_key(key)} = {self.config[key]!r} "
                    f"is not supported for {self._class_name()}"
                )
        if self.config.get("quantization_config"):
            raise GwqError(
                f"{self.folder}: the model is quantized already; "
                "export the original FP16/BF16/FP32 model"
            )

    def _read_sizes(self) -> None:
        self.layers = self.integer("num_hidden_layers")
        self.vocab = self.integer("vocab_size")
        dim = self.integer("hidden_size")
        heads = self.integer("num_attention_heads")
        kv_heads = self.integer("num_key_value_heads", heads)
        head = self.integer("head_dim", max(1, dim // heads))
        if heads % kv_heads or head % 2:
            raise GwqError(
                f"{self.folder}/config.json: {heads} heads over {kv_heads} key-value heads "
                f"of size {head} cannot be"
            )
        self.heads = {"heads": heads, "kv_heads": kv_heads}
        q = heads * head
        kv = kv_heads * head
        ffn = self.integer("intermediate_size", self.arch.ffn_times * dim or None)
        self.dims = {
            "dim": dim,
            "q": q,
            "kv": kv,
            "qkv": q + 2 * kv,
            "ffn": ffn,
            "gate_up": 2 * ffn,
            "head": head,
            "vocab": self.vocab,
            "ctx": self.integer("max_position_embeddings"),
        }
        if self.arch.experts:
            self.dims["experts"] = self.integer("num_local_experts")
            self.dims["expert_ffn"] = self.integer("moe_intermediate_size")

    def _saved_key(self, key: str) -> str:
        """What this architecture's configs call a key."""
        saved = self.arch.names.get(key, key)
        return saved if saved in self.config else key

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer of the config; the default stands for a missing or null one."""
        value = self.config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
            raise GwqError(
                f"{self.folder}/config.json: {self._saved_key(key)} is {value!r}, "
                "expected a positive integer"
            )
        return value

    def number(self, value: Any, key: str) -> float:
        """A positive float that the config holds under `key`."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
            raise GwqError(
                f"{self.folder}/config.json: {key} is {value!r}, expected a positive number"
            )
        return float(value)

    @property
    def embedding_scale(self) -> float:
        """What a row of the embedding is multiplied by before the first block."""
        if self.arch.scaled_embedding:
            return self.dims["dim"] ** 0.5
        key = self.arch.numbers.get("embedding_scale")
        return 1.0 if key is None else self.config.get(key, 1.0)

    # --- where the weights are; a subclass may have them elsewhere --------------------------------

    @property
    def place(self) -> str | Path:
        """Where the weights are, for messages."""
        return self.folder

    @property
    def provenance(self) -> dict[str, str]:
        """Where the weights come from, if not from the folder: {name: value} of gwq.* keys."""
        return {}

    @property
    def files(self) -> list[tuple[str, int, int]]:
        """[(name, bytes, time of last change in ns)] of the model and tokenizer files."""
        paths = sorted(p for p in self.folder.iterdir() if p.suffix in _MODEL_FILES)
        return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in paths]

    def check_vocabulary(self, tokens: dict[str, Any]) -> None:
        """Raise GwqError when the weights are known to be for another vocabulary.

        tokens: the tokenizer's GGUF keys.
        """

    def _find_tensors(self) -> dict[str, tuple[int, ...]]:
        """{full name: shape} of all tensors."""
        self._shards = Shards(self.folder, self.arch)
        return self._shards.shapes

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
        value = self._read(name)
        if not value.is_floating_point():
            raise GwqError(
                f"{self.place}: tensor {name} is {value.dtype}, expected a float type; "
                "export the original model"
            )
        value = value.to(torch.float32, copy=True)
        if not torch.isfinite(value.sum()) and not torch.isfinite(value).all():  # sums are quick
            raise GwqError(
                f"{self.place}: tensor {name} holds NaN or infinity; the model is damaged"
            )
        return value

    def block(self, i: int) -> dict[TensorRow, str]:
        """{row: full Hugging Face name} of the rows of block i that are present.

        Every matrix of an expert has a row of its own; they come expert by expert.
        """
        names = {row: self._block_name(i, row) for row in self._rows()}
        return {row: name for row, name in names.items() if name in self._shapes}

    def ends(self) -> list[tuple[TensorRow, str]]:
        """(row, Hugging Face name) of everything outside the blocks but the head."""
        return [(row, row.hf) for row in (*self.arch.first, *self.arch.last)]

    def _block_name(self, i: int, row: TensorRow) -> str:
        return f"{self.arch.layers}.{i}.{row.hf}"

    def _rows(self) -> list[TensorRow]:
        """Rows of a block, each of the experts' once for every expert."""
        of_experts = [row for row in self.arch.block if "{}" in row.hf]
        rows = [row for row in self.arch.block if row not in of_experts]
        for j in range(self.dims.get("experts", 0)):
            rows += [row.of_expert(j) for row in of_experts]
        return rows

    def _check_tensors(self) -> None:
        """Raise GwqError unless exactly the architecture's tensors are there, in the right size."""
        refuse_tensors(self.folder, self.place, self._shapes)
        needed = {name: row for row, name in self.ends()}
        optional: dict[str, TensorRow] = {}
        (optional if self.tied else needed)[self.arch.head] = self.arch.first[0]
        for i in range(self.layers):
            for row in self._rows():
                (optional if row.optional else needed)[self._block_name(i, row)] = row
        for name in needed:
            if name not in self._shapes:
                raise GwqError(f"{self.place}: tensor {name} is missing; {self.again}")
        known = needed | optional
        for name, shape in self._shapes.items():
            if name not in known:
                if _IGNORED.search(name):
                    continue
                raise GwqError(
                    f"{self.place}: tensor {name} has no place in {self.arch.gguf}; "
                    "this variant is not supported"
                )
            row = known[name]
            expected = tuple(self.dims[d] for d in row.shape[-2:])[:: -1 if row.transposed else 1]
            if shape != expected:
                raise GwqError(
                    f"{self.place}: tensor {name} has shape {shape}, "
                    f"but {expected} would fit the config"
                )
