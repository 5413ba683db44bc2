"""GGUF keys that say what the file is and how it was made."""

from gwq_export.format.types import FORMAT_VERSION
from gwq_export.version import __version__

_FILE_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q8_0": 7,
    "iq4_nl": 25,
    "bf16": 32,
}  # general.file_type; anything else counts as guessed
_GUESSED = 1024


def general_keys(source, name, type_name):
    return {
        "general.architecture": source.arch.gguf,
        "general.type": "model",
        "general.name": name,
        "general.quantization_version": 2,
        "general.file_type": _FILE_TYPES.get(type_name, _GUESSED),
    }


def provenance_keys(recipe, calibration, **facts):
    """`gwq.*` keys: the format version and how the file was made. None values are left out."""
    stock = bool(recipe.type.levels)
    facts |= {
        "format_version": FORMAT_VERSION if recipe.type.bits else None,
        "tool_version": __version__,
        "type": recipe.type.name,
        "outlier_fraction": float(recipe.outliers),
        "saliency": None if stock else recipe.saliency,
        "table": None if stock else recipe.table,
        "error_feedback": recipe.feedback,
    }
    if calibration:
        samples, ctx = calibration.tokens.shape
        facts |= {
            "calibration_sha256": calibration.hash,
            "calibration_samples": samples,
            "calibration_ctx": ctx,
        }
    return {f"gwq.{key}": value for key, value in facts.items() if value is not None}
