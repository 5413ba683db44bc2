"""Folders that hold something other than a whole unquantized model: what they are, what to do."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from gwq_export.errors import GwqError

_ADAPTER = "adapter_config.json"  # of peft
# ending of a tensor's name -> what stores weights in this way
_QUANTIZED = {
    ".g_idx": "GPTQ",  # before what AWQ has too
    ".qweight": "AWQ or GPTQ",
    ".qzeros": "AWQ or GPTQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "FP8 or compressed-tensors",
    ".weight_scale_inv": "FP8",
    ".input_scale": "FP8",
    ".SCB": "bitsandbytes (8 bits)",
    ".absmax": "bitsandbytes (4 bits)",
    ".quant_map": "bitsandbytes (4 bits)",
    ".weight_blocks": "MXFP4",
    "_proj_blocks": "MXFP4",
    ".codebooks": "AQLM",
    ".trellis": "EXL3",
    ".q_weight": "EXL2",
}
_LORA = (".lora_A", ".lora_B", ".lora_embedding_A", ".lora_magnitude_vector")


def refuse_folder(folder: Path) -> None:
    """Raise GwqError for a folder without config.json, if what it holds tells what it is."""
    if (folder / "config.json").exists() or not folder.is_dir():
        return
    if (folder / _ADAPTER).exists():
        raise _adapter(folder)
    files = sorted(folder.glob("*.gguf"))
    if files:
        raise GwqError(
            f"{folder}: no config.json, only GGUF files: give one of them, such as {files[0].name},"
            " in place of the folder"
        )


def refuse_tensors(folder: Path, place: str | Path, names: Iterable[str]) -> None:
    """Raise GwqError when tensors are those of a quantized model or of an adapter.

    place: where they lie, for the message.
    """
    names = list(names)
    if any(f"{part}." in f"{name}." for name in names for part in _LORA):
        raise _adapter(folder)
    for ending, kind in _QUANTIZED.items():
        for name in names:
            if name.endswith(ending):
                raise GwqError(
                    f"{place}: the model is quantized already, by {kind} (tensor {name}), and"
                    " config.json has no quantization_config that says how: take config.json from"
                    " where the model was published, or export the unquantized model"
                )


def _adapter(folder: Path) -> GwqError:
    base = "its base model"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        base = json.loads((folder / _ADAPTER).read_text())["base_model_name_or_path"] or base
    return GwqError(
        f"{folder} is an adapter (LoRA) of {base}, no model: give that model as MODEL, and this"
        " folder as --lora"
    )
