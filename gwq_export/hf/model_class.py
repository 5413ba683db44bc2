"""What transformers makes of a config.json: the model's class, every key of it, its tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from gwq_export.errors import translated

if TYPE_CHECKING:
    from transformers import PretrainedConfig

QUANTIZED = "quantization_config"
# model_type of a text model that is only a part of larger ones -> config keys of one by itself that
# computes the same from a text, whose positions are the same in all sections of a head
_ALONE: dict[str, dict[str, Any]] = {
    "qwen2_vl_text": {"model_type": "qwen2"},
    "qwen2_5_vl_text": {"model_type": "qwen2"},
    "qwen3_vl_text": {"model_type": "qwen3"},
    "glm4v_text": {"model_type": "glm4"},
    "glm_ocr_text": {"model_type": "glm4", "attention_bias": False},
    "paddleocr_vl_text": {"model_type": "llama"},
}


class ModelClass:
    """The class that transformers' AutoModelForCausalLM chooses for a config.

    Of a model with more parts than text, it is the class of its text model. saved: config.json.
    Raises GwqError when transformers does not accept it; path: for the message.
    """

    parsed: PretrainedConfig
    name: str  # of the class, "" if transformers has no causal language model for this config
    whole: str  # of the larger model, "" if the text model is all
    config: dict[str, Any]  # with the defaults of the class for keys that are not in the file

    def __init__(self, saved: Mapping[str, Any], path: Path):
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
        )

        # a quantizer would change which tensors there are
        plain = {key: value for key, value in saved.items() if key not in (QUANTIZED, "auto_map")}
        # some of the rules apply to files only
        with TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(plain), encoding="utf-8")
            with translated(f"{path}: transformers does not accept it ({{}})"):
                whole = AutoConfig.from_pretrained(folder)
                self.parsed = _text_config(whole)
                self.config = self.parsed.to_dict()
        self.name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(self.parsed.model_type, "")
        self.whole = ""
        if self.parsed is not whole:
            self.whole = MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.get(
                whole.model_type, whole.model_type
            )


def _text_config(whole: PretrainedConfig) -> PretrainedConfig:
    """The config of the text model in a model: a part of its config, or that itself."""
    from transformers import CONFIG_MAPPING

    text = whole.get_text_config(decoder=True)
    if text is whole or whole.is_encoder_decoder:
        return whole
    if text.model_type in _ALONE:
        values = text.to_dict() | _ALONE[text.model_type]
        # what a part leaves out turns whole heads; one by itself may have another default
        values["rope_parameters"] = {"partial_rotary_factor": 1.0} | values["rope_parameters"]
        text = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    # the larger class has the head, and ties it by its own config
    text.tie_word_embeddings = bool(getattr(whole, "tie_word_embeddings", False))
    return text


def tensors_of(config: PretrainedConfig, head: str, where: object) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the weights that a model of this config has, tied ones too.

    head: what checkpoints call that of the output; the class may have another name. where: the
    model, for the message. Raises GwqError when there cannot be such a model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with (
        translated(f"{where}: transformers cannot make the model ({{}})"),
        torch.device("meta"),
    ):
        model = AutoModelForCausalLM.from_config(config)
    last = model.get_output_embeddings()
    own = next(name for name, module in model.named_modules() if module is last)
    parameters = model.named_parameters(remove_duplicate=False)
    return {
        head if name == f"{own}.weight" else name: tuple(parameter.shape)
        for name, parameter in parameters
    }
