"""The config of a Hugging Face folder: its architecture, its sizes, every key with its default."""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gwq_export.arch.config import MAX_TAPS
from gwq_export.arch.registry import ARCHS
from gwq_export.arch.spec import Arch
from gwq_export.errors import GwqError
from gwq_export.files import read_json
from gwq_export.hf.model_class import QUANTIZED, ModelClass

if TYPE_CHECKING:
    from transformers import PretrainedConfig

WHOLE = "ForConditionalGeneration"  # ending of the names of classes that have more parts than text
ADJUSTED_FFN = "block_auto_adjust_ff_dim"  # config key: LFM2's feed-forward width is to be adjusted
SHARED_FFN = "shared_expert_intermediate_size"  # config key of the width of a shared expert


class ModelConfig:
    """The config of the model in a folder.

    Raises GwqError for an architecture or a value that is not supported.
    """

    folder: Path
    # every key of the transformers class, as saved or its default, and the usual names
    config: dict[str, Any]
    arch: Arch
    layers: int
    kinds: tuple[str, ...]  # of each block, "attention" or another of Arch.kinds
    vocab: int
    heads: dict[str, int]  # {"heads", "kv_heads"}
    dims: dict[str, int]  # sizes by the names that the architecture's tensor tables use

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self.config = read_json(self.folder / "config.json", "the config")
        self.arch = self._find_arch()
        self._complete_config()
        self._read_sizes()

    def transformers_config(self) -> PretrainedConfig:
        """The config by which transformers builds the model."""
        return deepcopy(self._class.parsed)

    def _class_name(self) -> str:
        names = self.config.get("architectures")
        if isinstance(names, list) and names and isinstance(names[0], str):
            return names[0]
        return str(names)

    def _find_arch(self) -> Arch:
        """The row of the class that transformers chooses, which must be the one that was saved."""
        path = self.folder / "config.json"
        name = self._class_name() if self.config.get("architectures") else ""
        if name and name not in ARCHS and not name.endswith(WHOLE):
            self._refuse_arch(name)
        self._class = ModelClass(self.config, path)
        text, whole = self._class.name, self._class.whole
        if name.endswith(WHOLE) and not whole:
            self._refuse_arch(name)
        if name and name != (whole or text):
            raise GwqError(
                f"{path}: architectures says {name}, but by model_type and the other keys "
                f"transformers loads {whole or text or 'no language model'}: correct the config"
            )
        if text not in ARCHS:
            kind = text or f"of model_type {self._class.parsed.model_type!r}"
            self._refuse_arch(f"{kind}, the text model of {whole}," if whole else kind)
        return ARCHS[text]

    def _refuse_arch(self, name: str) -> NoReturn:
        raise GwqError(
            f"{self.folder}: architecture {name} is not supported; supported: {', '.join(ARCHS)}"
        )

    def _complete_config(self) -> None:
        """Fill in defaults and usual names; refuse what the runtime does not compute."""
        quantized = self.config.get(QUANTIZED)
        self.config = self.arch.defaults | self._class.config
        self.config |= {
            key: self.config[saved]
            for key, saved in self.arch.names.items()
            if saved in self.config
        }
        if quantized:
            self.config[QUANTIZED] = quantized
        for key, allowed in self.arch.only.items():
            if key in self.config and self.config[key] not in allowed:
                raise GwqError(
                    f"{self.folder}: {self._saved_key(key)} = {self.config[key]!r} "
                    f"is not supported for {self._class.name}"
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
        ffn = self._ffn(dim)
        self.dims = {
            "dim": dim,
            "q": q,
            "kv": kv,
            "qkv": q + 2 * kv,
            "ffn": ffn,
            "gate_up": 2 * ffn,
            "head": head,
            "heads": heads,
            "vocab": self.vocab,
            "ctx": self.integer("max_position_embeddings"),
        }
        if self.arch.experts:
            self.dims["experts"] = self.integer("num_local_experts")
            self.dims["expert_ffn"] = self.integer("moe_intermediate_size")
            self.dims["shared_ffn"] = self.integer(SHARED_FFN, ffn)
        self._read_kinds()

    def _ffn(self, dim: int) -> int:
        """Width of a feed-forward layer, which LFM2 has in thirds and rounded up."""
        ffn = self.integer("intermediate_size", self.arch.ffn_times * dim or None)
        if not self.config.get(ADJUSTED_FFN):
            return ffn
        ffn = int(2 * ffn / 3)
        key = "block_ffn_dim_multiplier"
        if self.config.get(key) is not None:
            ffn = int(self.number(self.config[key], key) * ffn)
        unit = self.integer("block_multiple_of")
        return -(-ffn // unit) * unit

    def _read_kinds(self) -> None:
        """The kind of each block. Raises GwqError for one that is not known."""
        known = self.arch.kinds
        if not known:
            self.kinds = ("attention",) * self.layers
            return
        listed = self.config.get("layer_types")
        if not isinstance(listed, list) or len(listed) != self.layers or not {*listed} <= {*known}:
            raise GwqError(
                f"{self.folder}: layer_types = {listed} is not supported for {self.arch.gguf}:"
                f" give each of the {self.layers} blocks one of {', '.join(known)}"
            )
        self.kinds = tuple(known[name] for name in listed)
        self.dims |= {"conv_in": 3 * self.dims["dim"], "taps": self.integer("conv_L_cache")}
        if self.dims["taps"] > MAX_TAPS:
            raise GwqError(
                f"{self.folder}: conv_L_cache = {self.dims['taps']} is not supported: this version"
                f" computes convolutions of at most {MAX_TAPS} positions"
            )

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
