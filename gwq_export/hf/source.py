"""A Hugging Face model on disk: its config, and its weights one tensor at a time.

Weights are read through short-lived maps, so a model of any size costs the memory of what is in
use.
"""

import re
from pathlib import Path

from gwq_export.arch.registry import ARCHS
from gwq_export.errors import GwqError
from gwq_export.files import read_json

_IGNORED = re.compile(
    r"rotary_emb\.inv_freq$|\.masked_bias$|\.(attn|attention)\.bias$"
)  # buffers that old checkpoints carry


class Source:
    """A model's `config` (dict), `arch` (row of ARCHS), `layers`, `dims` and tensors. Raises
    GwqError.

    config: as saved, with the architecture's names and defaults filled in. dims: sizes by the names
    that arch's tensor tables use. Every tensor's shape was compared with them.
    """

    again = "download the model again"  # what to do about weights that are not as they should be

    def __init__(self, folder):
        self.folder = Path(folder)
        self.config = read_json(self.folder / "config.json", "the config")
        name = self.config.get("architectures")
        name = (
            name[0] if isinstance(name, list) and name and isinstance(name[0], str) else str(name)
        )
        self.arch = ARCHS.get(name)
        if self.arch is None:
            raise GwqError(
                f"{self.folder}: architecture {name} is not supported; supported: {', '.join(ARCHS)}"
            )
        self.config |= {
            key: self.config[own] for key, own in self.arch.names.items() if own in self.config
        }
        self.config = self.arch.defaults | self.config
        for key, allowed in self.arch.only.items():
            if key in self.config and self.config[key] not in allowed:
                raise GwqError(
                    f"{self.folder}: {self._own(key)} = {self.config[key]!r} is not supported for {name}"
                )
        if self.config.get("quantization_config"):
            raise GwqError(
                f"{self.folder}: the model is quantized already; export the original FP16/BF16/FP32 model"
            )
        self.layers, self.vocab = self.integer("num_hidden_layers"), self.integer("vocab_size")
        dim, heads = self.integer("hidden_size"), self.integer("num_attention_heads")
        kv_heads, head = (
            self.integer("num_key_value_heads", heads),
            self.integer("head_dim", max(1, dim // heads)),
        )
        if heads % kv_heads or head % 2:
            raise GwqError(
                f"{self.folder}/config.json: {heads} heads over {kv_heads} key-value heads of size {head} cannot be"
            )
        self.heads = {"heads": heads, "kv_heads": kv_heads}
        q, kv, ffn = (
            heads * head,
            kv_heads * head,
            self.integer("intermediate_size", self.arch.ffn_times * dim or None),
        )
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
            self.dims |= {
                "experts": self.integer("num_local_experts"),
                "expert_ffn": self.integer("moe_intermediate_size"),
            }
        self._shapes = {}  # full tensor name -> shape
        self._find_tensors()
        self.tied = self.arch.head not in self._shapes or bool(
            self.config.get("tie_word_embeddings")
        )
        self._check_tensors()

    @property
    def place(self):
        """Where the weights are."""
        return self.folder

    @property
    def provenance(self):
        """Of the weights, for the file's gwq.* keys: {name: value}."""
        return {}

    def _find_tensors(self):
        """Note the shapes of all tensors."""
        self._files = {}  # full tensor name -> (file, name there, which part of it)
        for path in self._shards():
            self._read_shapes(path)
        self._add_prefix()

    def _own(self, key):
        """What this architecture's configs call a key."""
        own = self.arch.names.get(key, key)
        return own if own in self.config else key

    def integer(self, key, default=None):
        """A positive integer of the config; the default stands for a missing or null one."""
        value = self.config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
            raise GwqError(
                f"{self.folder}/config.json: {self._own(key)} is {value!r}, expected a positive integer"
            )
        return value

    def number(self, value, key):
        """A positive float that the config holds under `key`."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
            raise GwqError(
                f"{self.folder}/config.json: {key} is {value!r}, expected a positive number"
            )
        return float(value)

    def _shards(self):
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            weight_map = read_json(index, "the shard index").get("weight_map")
            if not isinstance(weight_map, dict):
                raise GwqError(f"{index}: no weight_map; download the model again")
            return sorted({self.folder / str(file) for file in weight_map.values()})
        shards = sorted(self.folder.glob("*.safetensors"))
        if not shards:
            raise GwqError(
                f"{self.folder}: no *.safetensors; save the model with save_pretrained(safe_serialization=True)"
            )
        return shards

    @staticmethod
    def _open(path):
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(str(path), "pt")
        except (OSError, SafetensorError) as e:
            raise GwqError(f"{path}: cannot be read ({e}); download the model again") from None

    def _read_shapes(self, path):
        with self._open(path) as f:
            for stored in f.keys():  # noqa: SIM118 (not a dict)
                for name, shape, part in self._matrices(
                    stored, tuple(f.get_slice(stored).get_shape())
                ):
                    self._files[name], self._shapes[name] = (path, stored, part), shape

    def _matrices(self, stored, shape):
        """[(name, shape, index)] of what a checkpoint holds as one tensor: of experts it may be all
        matrices of a kind, or of two.
        """
        name = stored
        for old, new in self.arch.renamed:
            name = name.replace(old, new)
        layer, _, kind = name.rpartition(".experts.")
        if not self.arch.experts or len(shape) != 3 or kind not in ("gate_up_proj", "down_proj"):
            return [(name, shape, ())]
        kinds = kind.removesuffix("_proj").split("_")
        rows = shape[1] // len(kinds)
        parts = [
            (f"{name}_proj.weight", slice(i * rows, (i + 1) * rows)) for i, name in enumerate(kinds)
        ]
        return [
            (f"{layer}.experts.{j}.{name}", (rows, shape[2]), (j, part))
            for j in range(shape[0])
            for name, part in parts
        ]

    @property
    def files(self):
        """[(name, bytes, time of last change in ns)] of the folder's model and tokenizer files."""
        found = sorted(
            p
            for p in self.folder.iterdir()
            if p.suffix in (".json", ".safetensors", ".model", ".jinja")
        )
        return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in found]

    def _add_prefix(self):
        """Complete the names of a checkpoint that was saved from the bare decoder, as GPT-2's was."""
        prefix = self.arch.layers.partition(".")[0] + "."
        if (
            self.arch.embed not in self._files
            and self.arch.embed.removeprefix(prefix) in self._files
        ):
            self._files = {prefix + name: place for name, place in self._files.items()}
            self._shapes = {prefix + name: shape for name, shape in self._shapes.items()}

    def shape(self, name):
        """Of a tensor as the checkpoint has it."""
        return self._shapes[name]

    def tensor(self, name):
        """A torch.float32 copy of the tensor;

        GwqError when it is missing, damaged or not a float.
        """
        import torch

        if name not in self._shapes:
            raise GwqError(f"{self.place}: tensor {name} is missing; {self.again}")
        value = self._read(name)
        if not value.is_floating_point():
            raise GwqError(
                f"{self.place}: tensor {name} is {value.dtype}, expected a float type; export the original model"
            )
        value = value.to(torch.float32, copy=True)
        if not torch.isfinite(value.sum()) and not torch.isfinite(value).all():  # sums are quick
            raise GwqError(
                f"{self.place}: tensor {name} holds NaN or infinity; the model is damaged"
            )
        return value

    def _read(self, name):
        """A tensor as it is stored."""
        from safetensors import SafetensorError

        path, stored, part = self._files[name]
        try:
            file = self._open(path)
            return file.get_slice(stored)[part] if part else file.get_tensor(stored)
        except SafetensorError as e:
            raise GwqError(f"{path}: tensor {name} cannot be read ({e}); {self.again}") from None

    def check_vocabulary(self, tokens):
        """Raise GwqError when the weights are known to be for another vocabulary than `tokens`."""

    def block(self, i):
        """Hugging Face names of block i: {row: full name} for the rows of the architecture that are
        present.

        Every matrix of an expert has a row of its own; they come expert by expert.
        """
        names = {row: f"{self.arch.layers}.{i}.{row.hf}" for row in self._rows()}
        return {row: name for row, name in names.items() if name in self._shapes}

    def _rows(self):
        """Rows of a block, each of the experts' once for every expert."""
        of_experts = [row for row in self.arch.block if "{}" in row.hf]
        others = [row for row in self.arch.block if row not in of_experts]
        return others + [
            row.of_expert(j) for j in range(self.dims.get("experts", 0)) for row in of_experts
        ]

    @property
    def embedding_scale(self):
        """What a row of the embedding is multiplied by before the first block."""
        arch = self.arch
        return (
            self.dims["dim"] ** 0.5
            if arch.scaled_embedding
            else self.config.get(arch.numbers.get("embedding_scale"), 1.0)
        )

    def ends(self):
        """(row, Hugging Face name) of everything outside the blocks but the head."""
        return [(row, row.hf) for row in (*self.arch.first, *self.arch.last)]

    def _check_tensors(self):
        """Everything the architecture needs is there in the size the config says, and nothing else
        is.
        """
        needed, optional = {name: row for row, name in self.ends()}, {}
        (optional if self.tied else needed)[self.arch.head] = self.arch.first[0]
        for i in range(self.layers):
            for row in self._rows():
                (optional if row.optional else needed)[f"{self.arch.layers}.{i}.{row.hf}"] = row
        for name in needed:
            if name not in self._shapes:
                raise GwqError(f"{self.place}: tensor {name} is missing; {self.again}")
        known = needed | optional
        for name, shape in self._shapes.items():
            row = known.get(name)
            if row is None:
                if _IGNORED.search(name):
                    continue
                raise GwqError(
                    f"{self.place}: tensor {name} has no place in {self.arch.gguf}; this variant is not supported"
                )
            expected = tuple(self.dims[d] for d in row.shape[-2:])[:: -1 if row.transposed else 1]
            if shape != expected:
                raise GwqError(
                    f"{self.place}: tensor {name} has shape {shape}, but {expected} would fit the config"
                )
