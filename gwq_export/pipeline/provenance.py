"""GGUF keys that say what the file is and how it was made."""

from typing import Any

from gwq_export.calibration.text import Calibration
from gwq_export.format.types import FORMAT_VERSION
from gwq_export.hf.source import Source
from gwq_export.quantization.recipe import Recipe
from gwq_export.version import __version__

# general.file_type by the name of the type; files of any other count as "guessed"
_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "iq4_nl": 25, "bf16": 32}
_GUESSED = 1024


def general_keys(source: Source, name: str, type_name: str) -> dict[str, Any]:
    """`general.*` keys. name: of the model; type_name: of the decoder's linears, or "mixed"."""
    return {
        "general.architecture": source.arch.gguf,
        "general.type": "model",
        "general.name": name,
        "general.quantization_version": 2,
        "general.file_type": _FILE_TYPES.get(type_name, _GUESSED),
    }


def provenance_keys(
    recipe: Recipe, calibration: Calibration | None, **facts: Any
) -> dict[str, Any]:
    """`gwq.*` keys: the format version and how the file was made. None values are left out."""
    is_ggml = bool(recipe.type.levels)
    facts |= {
        "format_version": FORMAT_VERSION if recipe.type.bits else None,
        "tool_version": __version__,
        "type": recipe.type.name,
        "outlier_fraction": float(recipe.outliers),
        "saliency": None if is_ggml else recipe.saliency,
        "table": None if is_ggml else recipe.table,
        "error_feedback": recipe.feedback,
        # left out where false, so that files made without are what they were before these keys
        "row_feedback": (recipe.feedback and recipe.outputs) or None,
        "drift_correction": recipe.drift or None,
    }
    if calibration:
        samples, ctx = calibration.tokens.shape
        facts |= {
            "calibration_sha256": calibration.hash,
            "calibration_samples": samples,
            "calibration_ctx": ctx,
        }
    return {f"gwq.{key}": value for key, value in facts.items() if value is not None}
