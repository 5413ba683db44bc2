"""A Hugging Face model on disk: its config, and its weights one tensor at a time.

Weights are read through short-lived maps, so a model of any size costs the memory of what is in use.
"""

import json
import re
from pathlib import Path

from gwq_export import GwqError
from gwq_export.arch import ARCHS

_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer.model", "*.jinja"]


def resolve(model, revision=None):
    """Folder of a model: `model` itself, or the cached download of a hub id such as "org/name". Raises GwqError."""
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists():
        raise GwqError(f"{model} is a file: give the model's folder (with config.json and *.safetensors) or a hub id")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        raise GwqError(f"{model}: no such folder; give a Hugging Face model folder or a hub id such as org/name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=_HUB_FILES))
    except Exception as e:  # the hub client raises many kinds; all of them mean that the model cannot be had
        reason = " ".join(str(e).split())[:200]
        raise GwqError(f"{model}: not a folder here, and the hub download failed ({type(e).__name__}: {reason})") from None


def _read_json(path, what):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GwqError(f"{path.parent}: no {path.name}; give the folder of a Hugging Face model") from None
    except (OSError, ValueError) as e:
        raise GwqError(f"{path}: {what} cannot be read ({e}); download the model again") from None


class Source:
    """`config` (dict), `arch` (row of ARCHS), `layers`, and float32 tensors by Hugging Face name. Raises GwqError."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.config = _read_json(self.folder / "config.json", "the config")
        names = self.config.get("architectures") or ["(none)"]
        self.arch = ARCHS.get(names[0])
        if self.arch is None:
            raise GwqError(f"{self.folder}: architecture {names[0]} is not supported; supported: {', '.join(ARCHS)}")
        for key, allowed in self.arch.only.items():
            if key in self.config and self.config[key] not in allowed:
                raise GwqError(f"{self.folder}: {key} = {self.config[key]!r} is not supported for {names[0]}")
        if self.config.get("quantization_config"):
            raise GwqError(f"{self.folder}: the model is quantized already; export the original FP16/BF16/FP32 model")
        self.layers = self.require("num_hidden_layers")
        self._files = self._index()
        self.tied = self.arch.head not in self._files or bool(self.config.get("tie_word_embeddings"))
        self._check_tensors()

    def require(self, key):
        """A positive integer of the config."""
        value = self.config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise GwqError(f"{self.folder}/config.json: {key} is {value!r}, expected a positive integer")
        return value

    def _index(self):
        """Tensor name -> safetensors file."""
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            weight_map = _read_json(index, "the shard index").get("weight_map")
            if not isinstance(weight_map, dict):
                raise GwqError(f"{index}: no weight_map; download the model again")
            files = {name: self.folder / str(file) for name, file in weight_map.items()}
            for path in set(files.values()):
                if path.resolve().parent != self.folder.resolve() and not path.exists():
                    raise GwqError(f"{path}: a shard named in the index is missing; download the model again")
            return files
        shards = sorted(self.folder.glob("*.safetensors"))
        if not shards:
            raise GwqError(f"{self.folder}: no *.safetensors; save the model with save_pretrained(safe_serialization=True)")
        return {name: path for path in shards for name in self._names(path)}

    @staticmethod
    def _open(path):
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(str(path), "pt")
        except (OSError, SafetensorError) as e:
            raise GwqError(f"{path}: cannot be read ({e}); download the model again") from None

    def _names(self, path):
        with self._open(path) as f:
            return list(f.keys())

    def __contains__(self, name):
        return name in self._files

    def shape(self, name):
        return tuple(self._open(self._files[name]).get_slice(name).get_shape())

    def tensor(self, name):
        """A torch.float32 copy of the tensor; GwqError when it is missing, damaged or not a float."""
        import torch
        from safetensors import SafetensorError

        if name not in self._files:
            raise GwqError(f"{self.folder}: tensor {name} is missing; download the model again")
        try:
            value = self._open(self._files[name]).get_tensor(name)
        except SafetensorError as e:
            raise GwqError(f"{self._files[name]}: tensor {name} cannot be read ({e}); download the model again") from None
        if not value.is_floating_point():
            raise GwqError(f"{self.folder}: tensor {name} is {value.dtype}, expected a float type; export the original model")
        value = value.to(torch.float32, copy=True)
        if not torch.isfinite(value).all():
            raise GwqError(f"{self.folder}: tensor {name} holds NaN or infinity; the model is damaged")
        return value

    def block(self, i):
        """Hugging Face names of block i: {row: full name} for the rows of the architecture that are present."""
        names = {row: f"{self.arch.layers}.{i}.{row.hf}" for row in self.arch.block}
        return {row: name for row, name in names.items() if name in self._files}

    def _check_tensors(self):
        needed = [self.arch.embed, self.arch.norm, *([] if self.tied else [self.arch.head])]
        for i in range(self.layers):
            needed += [f"{self.arch.layers}.{i}.{row.hf}" for row in self.arch.block if not row.optional]
        for name in needed:
            if name not in self._files:
                raise GwqError(f"{self.folder}: tensor {name} is missing; download the model again")
        known = {*needed, self.arch.head, *(n for i in range(self.layers) for n in self.block(i).values())}
        ignored = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$")
        for name in self._files:
            if name not in known and not ignored.search(name):
                raise GwqError(f"{self.folder}: tensor {name} has no place in {self.arch.gguf}; this variant is not supported")
