"""A transformers model of which one decoder block at a time has its weights.

Blocks run as transformers' own modules, so rope, masks and attention variants come from there.
"""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from gwq_export.calibration.linear import use_own_products
from gwq_export.calibration.moe_modules import unfuse, unpair
from gwq_export.compute.threads import each
from gwq_export.errors import GwqError, translated

LOGITS = 2**21  # floats of the logits that are worked on at once: 8 MiB, and of several copies
MIN_PART = 16  # tokens


class ModelSource(Protocol):
    """What is asked of a checkpoint here; `hf.source.Source` has it."""

    folder: Path
    arch: Any  # arch.spec.Arch
    layers: int
    tied: bool  # whether the head is the embedding

    @property
    def embedding_scale(self) -> float:
        """What embeddings are multiplied by."""

    def transformers_config(self) -> Any:
        """The config by which transformers builds the model."""

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, float32, by its Hugging Face name."""

    def block(self, i: int) -> Mapping[Any, str]:
        """{row of the architecture's table: Hugging Face name} of block i."""

    def ends(self) -> list[tuple[Any, str]]:
        """(row, Hugging Face name) of everything outside the blocks but the head."""


@contextmanager
def _weightless() -> Iterator[None]:
    """Modules made in here have buffers, such as rope frequencies, but no weights."""

    def empty(module: Any, name: str, weight: torch.nn.Parameter | None) -> Any:
        return weight if weight is None else _emptied(weight)

    handle = register_module_parameter_registration_hook(empty)
    try:
        yield
    finally:
        handle.remove()


def _emptied(weight: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(weight.to("meta"), requires_grad=False)


def _drop(module: torch.nn.Module) -> None:
    """Let go of the weights of a module and its parts."""
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            setattr(part, name, _emptied(weight))


class _Stand(torch.nn.Module):
    """Stands in for a decoder block: notes what the model passes to it, and hands that on.

    Where there is a `given.give`, which every thread sets for itself, that is handed on instead,
    and nothing is noted.
    """

    def __init__(self, given: threading.local) -> None:
        super().__init__()
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.seen: torch.Tensor | None = None
        self.given = given

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """hidden (1, ctx, dim)."""
        give = getattr(self.given, "give", None)
        if give is not None:
            return give
        self.args = args
        self.kwargs = kwargs
        self.seen = hidden
        return hidden


class BlockModel:
    """A transformers model whose decoder blocks are loaded one at a time from a source.

    Raises GwqError when transformers does not accept the config, or weights do not fit it.
    """

    def __init__(self, source: ModelSource, device: str):
        self.source = source
        self.device = device
        self.model = self._empty_model()
        parent_path, _, name = source.arch.layers.rpartition(".")
        parent = self.model.get_submodule(parent_path)
        self.blocks = list(getattr(parent, name))  # on the meta device until loaded
        if source.arch.experts:
            for block in self.blocks:
                unfuse(block, source.arch.experts)
        if source.arch.paired_ffn:
            for block in self.blocks:
                unpair(block, source.arch.paired_ffn)
        self.given = threading.local()
        self.stands = [_Stand(self.given) for _ in self.blocks]
        setattr(parent, name, torch.nn.ModuleList(self.stands))
        for module in (self.model, *self.blocks):
            use_own_products(module)
            for part in module.modules():
                buffers = part.named_buffers(recurse=False)
                part._buffers.update({name: b.to(device) for name, b in buffers})
        self.head = self.model.get_output_embeddings()

    def _empty_model(self) -> Any:
        from transformers import AutoModelForCausalLM

        # it recommends kernels for GPUs, wherever it computes
        logging.getLogger("transformers.integrations.hub_kernels").setLevel(logging.ERROR)
        with translated(f"{self.source.folder}: transformers does not accept the config ({{}})"):
            config = self.source.transformers_config()
            config.use_cache = False
            config.tie_word_embeddings = self.source.tied  # a head of its own stays one
            soft_capped = getattr(config, "attn_logit_softcapping", None)  # sdpa knows none of it
            with _weightless():
                model = AutoModelForCausalLM.from_config(
                    config,
                    dtype=torch.float32,
                    attn_implementation="eager" if soft_capped else "sdpa",
                )
        return model.eval().requires_grad_(False)

    def load_ends(self) -> None:
        """Load embedding, final norm and head: large, so they stay only until `drop_ends`."""
        source = self.source
        self._assign(self.model, {name: source.tensor(name) for _, name in source.ends()})
        if source.tied:
            self.head.weight = self.end(source.arch.embed)
        else:
            self._assign(self.head, {"weight": source.tensor(source.arch.head)})

    def drop_ends(self) -> None:
        """Let go of what `load_ends` loaded."""
        _drop(self.model)

    def end(self, name: str) -> torch.nn.Parameter:
        """The parameter of the embedding or the head, by its name in the checkpoint."""
        return self.head.weight if name == self.source.arch.head else self.model.get_parameter(name)

    def _assign(self, module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        folder = self.source.folder
        on_device = {n: t.to(self.device) for n, t in tensors.items()}
        try:
            found = module.load_state_dict(on_device, assign=True, strict=False)
        except RuntimeError as e:
            raise GwqError(
                f"{folder}: weights do not fit the config ({str(e).splitlines()[-1].strip()})"
            ) from None
        if found.unexpected_keys:
            raise GwqError(
                f"{folder}: tensor {found.unexpected_keys[0]} does not fit the config, by which"
                " there is none"
            )
        module.requires_grad_(False)

    def load(self, i: int) -> torch.nn.Module:
        """Block i with its weights."""
        prefix = f"{self.source.arch.layers}.{i}."
        names = [*self.source.block(i).values()]
        tensors = each(self.source.tensor, names)
        local = [name.removeprefix(prefix) for name in names]
        self._assign(self.blocks[i], dict(zip(local, tensors, strict=True)))
        for name, parameter in self.blocks[i].named_parameters():
            if parameter.is_meta:
                raise GwqError(
                    f"{self.source.folder}: tensor {prefix}{name} is missing; download the model"
                    " again"
                )
        return self.blocks[i]

    def drop(self, i: int) -> None:
        """Let go of block i's weights."""
        _drop(self.blocks[i])

    def run(self, i: int, hidden: torch.Tensor) -> torch.Tensor:
        """Output of loaded block i for hidden (1, ctx, dim), with the model's other arguments."""
        stand = self.stands[i]
        out = self.blocks[i](hidden, *stand.args, **stand.kwargs)
        return out[0] if isinstance(out, tuple) else out

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states (1, ctx, dim) before block 0, for ids (1, ctx).

        Every block's arguments are noted on the way.
        """
        self.model.base_model(input_ids=ids, use_cache=False)
        return self.stands[0].seen

    @property
    def knows_arguments(self) -> bool:
        """Whether `embed` has run, so that blocks know what the model passes to them."""
        return self.stands[0].seen is not None

    def logits_size(self, tokens: torch.Tensor) -> int:
        """Floats in the logits of one of the windows (samples, ctx), once the head is loaded."""
        return tokens.shape[1] * len(self.head.weight)

    def parts(self, tokens: int) -> list[slice]:
        """So many tokens in parts whose logits fit in memory, once the head is loaded."""
        step = max(MIN_PART, LOGITS // len(self.head.weight))
        return [slice(a, min(a + step, tokens)) for a in range(0, tokens, step)]

    def logits(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """float32 (n, vocab) for ids (1, n), from the last block's output (1, n, dim).

        n may be a part of a window: the arguments that blocks get stay those of `embed`.
        """
        self.given.give = hidden
        logits = self.model(input_ids=ids, use_cache=False).logits[0].float()
        self.given.give = None
        return logits
