"""The reference of --against: a Hugging Face folder or a GGUF file, if it can be one.

A comparison says something only when the reference is a whole language model over the same tokens;
everything else is refused.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from gwq_export.errors import GwqError, not_imported, translated
from gwq_export.evaluation.predictors import Predictor, load, module_logits, runtime_logits
from gwq_export.machine import default_threads
from gwq_export.runtime.model import Model
from gwq_export.tokenizer.build import NORMAL
from gwq_export.tokenizer.from_hf import token_texts

log = logging.getLogger("gwq_export")
SAME = "give the original, unquantized model that the file was made from"


def reference_logits(
    path: str | PathLike[str], model: Model, threads: int | None = None
) -> Predictor:
    """A Predictor for --against: a Hugging Face folder, or any GGUF file.

    Raises GwqError when it cannot be read, is not a whole language model, or has another vocabulary
    than `model`.
    """
    ours = model.weights.reader.metadata
    if not Path(path).is_dir():
        reference = load(path, threads)
        check_vocabulary(ours, reference.weights.reader.metadata["tokenizer.ggml.tokens"], path)
        return runtime_logits(reference)
    predictor, rows = _of_folder(path, threads)
    check_vocabulary(ours, _tokens_of(path, rows, ours["tokenizer.ggml.tokens"]), path)
    return predictor


def _tokens_of(path: str | PathLike[str], rows: int, ours: Sequence[str]) -> Sequence[str]:
    """The tokens of a folder; of one without a tokenizer the file's, if there are as many."""
    if (Path(path) / "tokenizer.json").is_file():
        return token_texts(path, rows)
    if rows == len(ours):
        log.warning("--against %s has no tokenizer.json: is it the file's vocabulary?", path)
        return ours
    return [""] * rows


def transformers_logits(folder: str | PathLike[str], threads: int | None = None) -> Predictor:
    """A Predictor by transformers in float32, from a Hugging Face folder.

    threads: that torch uses from now on; None: as many CPUs as this process may use. Raises
    GwqError without the export extra, when transformers cannot load the folder, and when that is
    not a language model with all of its weights.
    """
    return _of_folder(folder, threads)[0]


def check_vocabulary(
    ours: Mapping[str, Any], theirs: Sequence[str], path: str | PathLike[str]
) -> None:
    """Raise GwqError unless the reference's tokens are those of a file.

    ours: the file's keys; theirs: the reference's tokens. Special and unused tokens may have other
    names, and the reference may have unused ones at its end.
    """
    tokens = ours["tokenizer.ggml.tokens"]
    types = ours.get("tokenizer.ggml.token_type", np.full(len(tokens), NORMAL))
    known = zip(tokens, theirs, types, strict=False)
    other = [(a, b) for a, b, type in known if a != b and type == NORMAL]
    rest = [f"[PAD{i}]" for i in range(len(tokens), len(theirs))]
    if len(theirs) < len(tokens) or list(theirs[len(tokens) :]) != rest:
        why = f"{len(theirs)} tokens, the file has {len(tokens)}"
    elif other:
        why = f"token {json.dumps(other[0][1])} where the file has {json.dumps(other[0][0])}"
    else:
        return
    raise GwqError(f"--against {path}: its vocabulary is another one ({why}): {SAME}")


def _of_folder(folder: str | PathLike[str], threads: int | None) -> tuple[Predictor, int]:
    """(a Predictor of the model in a folder, rows of its embedding). Raises GwqError."""
    try:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ImportError as e:
        raise not_imported(e, "--against a Hugging Face folder", "export") from None

    def refuse(why: str) -> GwqError:
        return GwqError(f"--against {folder}: {why}: {SAME}")

    with translated(f"--against {folder}: transformers cannot load it ({{}}): {SAME}"):
        config = AutoConfig.from_pretrained(folder)
        claimed = (config.architectures or [None])[0]
        classes = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if config.model_type not in classes or claimed not in (None, *classes.values()):
            raise refuse(f"it is a {claimed or config.model_type}, not a causal language model")
        quantizer = getattr(config, "quantization_config", None)
        if quantizer is not None:  # plain weights are loaded as they are, others are missing then
            del config.quantization_config
        reference, found = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True
        )
    missing = sorted(found["missing_keys"])
    scales = sorted(n for n in found["unexpected_keys"] if "inv_freq" not in n and quantizer)
    if scales:
        raise GwqError(
            f"--against {folder}: its weights are quantized ({_method(quantizer)}, tensor"
            f" {scales[0]}): make a file of it with gwq-export --type f32, and give that"
        )
    if missing:
        said = (
            f"; config.json has a quantization_config ({_method(quantizer)})" if quantizer else ""
        )
        raise refuse(f"{len(missing)} of its tensors are missing, such as {missing[0]}{said}")
    reference.eval()
    # torch by itself does not see a container's quota
    torch.set_num_threads(threads or min(torch.get_num_threads(), default_threads()))
    if not _is_causal(reference):
        raise refuse(f"its {type(reference).__name__} sees later tokens, as encoders do")
    return module_logits(reference), len(reference.get_input_embeddings().weight)


def _method(quantizer: Any) -> Any:
    """What a quantization_config says of the method."""
    settings = quantizer if isinstance(quantizer, dict) else vars(quantizer)
    return settings.get("quant_method", settings)


def _is_causal(model: Any) -> bool:
    """Whether a transformers model predicts from what comes before only."""
    import torch

    with torch.no_grad():
        a, b = (model(input_ids=torch.tensor([[1, 2, 3, last]])).logits[0, :3] for last in (4, 5))
    return bool((a - b).abs().max() <= 1e-5 * a.abs().max())
