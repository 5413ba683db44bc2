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


class ModelClass:
    """The class that transformers' AutoModelForCausalLM chooses for a config.

    saved: config.json. Raises GwqError when transformers does not accept it; path: for the message.
    """

    parsed: PretrainedConfig
    name: str  # of the class, "" if transformers has no causal language model for this config
    config: dict[str, Any]  # with the defaults of the class for keys that are not in the file

    def __init__(self, saved: Mapping[str, Any], path: Path):
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        # a quantizer would change which tensors there are
        plain = {key: value for key, value in saved.items() if key not in (QUANTIZED, "auto_map")}
        # some of the rules apply to files only
        with TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(plain), encoding="utf-8")
            with translated(f"{path}: transformers does not accept it ({{}})"):
                self.parsed = AutoConfig.from_pretrained(folder)
                self.config = self.parsed.to_dict()
        self.name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(self.parsed.model_type, "")


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
