"""What transformers makes of a config.json: the model's class, every key of it, its tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gwq_export.errors import GwqError, one_line

QUANTIZED = "quantization_config"


class ModelClass:
    """The class that transformers' AutoModelForCausalLM chooses for a config.

    saved: config.json. Raises GwqError when transformers does not accept it; path: for the message.
    """

    name: str  # of the class, "" if transformers has no causal language model for this config
    config: dict[str, Any]  # with the defaults of the class for keys that are not in the file

    def __init__(self, saved: Mapping[str, Any], path: Path):
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        self._path = path
        # a quantizer would change which tensors there are
        plain = {key: value for key, value in saved.items() if key not in (QUANTIZED, "auto_map")}
        try:
            with TemporaryDirectory() as folder:  # some of the rules apply to files only
                Path(folder, "config.json").write_text(json.dumps(plain), encoding="utf-8")
                self._config = AutoConfig.from_pretrained(folder)
            self.config = self._config.to_dict()
        except Exception as e:  # transformers raises many kinds for a config it does not accept
            self._refuse(e)
        self.name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(self._config.model_type, "")

    def _refuse(self, error: Exception) -> Any:
        raise GwqError(
            f"{self._path}: transformers does not accept it ({one_line(error)})"
        ) from None

    def tensors(self, head: str) -> dict[str, tuple[int, ...]]:
        """{name: shape} of the weights that a model of this config has, tied ones too.

        head: what checkpoints call that of the output; the class may have another name. Raises
        GwqError when there cannot be such a model.
        """
        import torch
        from transformers import AutoModelForCausalLM

        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(self._config)
        except Exception as e:  # as above
            self._refuse(e)
        last = model.get_output_embeddings()
        own = next(name for name, module in model.named_modules() if module is last)
        parameters = model.named_parameters(remove_duplicate=False)
        return {
            head if name == f"{own}.weight" else name: tuple(parameter.shape)
            for name, parameter in parameters
        }
