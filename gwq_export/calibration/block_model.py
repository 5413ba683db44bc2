"""A transformers model of which one decoder block at a time has its weights.

Blocks run as transformers' own modules, so rope, masks and attention variants come from there.
"""

import threading
from contextlib import contextmanager

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from gwq_export.calibration.moe_modules import unfuse
from gwq_export.errors import GwqError


@contextmanager
def _weightless():
    """Modules made in here have buffers, such as rope frequencies, but no weights."""
    handle = register_module_parameter_registration_hook(
        lambda module, name, weight: weight if weight is None else _emptied(weight)
    )
    try:
        yield
    finally:
        handle.remove()


def _emptied(weight):
    return torch.nn.Parameter(weight.to("meta"), requires_grad=False)


def _drop(module):
    """Let go of the weights of a module and its parts."""
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            setattr(part, name, _emptied(weight))


class _Stand(torch.nn.Module):
    """In the place of a decoder block: notes what the model passes to it and hands on `give` or its
    input.
    """

    def __init__(self):
        super().__init__()
        self.args = self.kwargs = self.seen = None
        self.given = threading.local()  # .give: of the thread that runs the model

    def forward(self, hidden, *args, **kwargs):
        self.args, self.kwargs, self.seen = args, kwargs, hidden
        give = getattr(self.given, "give", None)
        return hidden if give is None else give


class BlockModel:
    """A transformers model whose decoder blocks are loaded one at a time from a Source."""

    def __init__(self, source, device):
        from transformers import AutoConfig, AutoModelForCausalLM

        self.source, self.device = source, device
        try:
            config = AutoConfig.from_pretrained(source.folder)
            config.use_cache = False
            attention = (
                "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
            )  # sdpa knows no soft-capping
            with _weightless():
                self.model = AutoModelForCausalLM.from_config(
                    config, dtype=torch.float32, attn_implementation=attention
                )
        except Exception as e:  # transformers raises many kinds for a config it does not accept
            raise GwqError(
                f"{source.folder}/config.json: transformers does not accept it ({' '.join(str(e).split())[:200]})"
            ) from None
        self.model.eval().requires_grad_(False)
        parent, _, name = source.arch.layers.rpartition(".")
        parent = self.model.get_submodule(parent)
        self.blocks = list(getattr(parent, name))  # on the meta device until loaded
        if source.arch.experts:
            for block in self.blocks:
                unfuse(block, source.arch.experts)
        self.stands = [_Stand() for _ in self.blocks]
        setattr(parent, name, torch.nn.ModuleList(self.stands))
        for module in (self.model, *self.blocks):
            for part in module.modules():
                part._buffers.update(
                    {name: b.to(device) for name, b in part.named_buffers(recurse=False)}
                )
        self.head = self.model.get_output_embeddings()

    def load_ends(self):
        """Embedding, last norm and head: on hand only while they are used, as they are large."""
        source = self.source
        self._assign(self.model, {name: source.tensor(name) for _, name in source.ends()})
        if source.tied:
            self.head.weight = self.end(source.arch.embed)
        else:
            self._assign(self.head, {"weight": source.tensor(source.arch.head)})

    def drop_ends(self):
        _drop(self.model)

    def end(self, name):
        """The parameter of the embedding or the head, by its name in the checkpoint."""
        return self.head.weight if name == self.source.arch.head else self.model.get_parameter(name)

    def _assign(self, module, tensors):
        tensors = {n: t.to(self.device) for n, t in tensors.items()}
        try:
            unknown = module.load_state_dict(tensors, assign=True, strict=False).unexpected_keys
        except RuntimeError as e:
            raise GwqError(
                f"{self.source.folder}: weights do not fit the config ({str(e).splitlines()[-1].strip()})"
            ) from None
        if unknown:
            raise GwqError(
                f"{self.source.folder}: tensor {unknown[0]} does not fit the config, by which there is none"
            )
        module.requires_grad_(False)

    def load(self, i):
        """Block i with its weights."""
        prefix = f"{self.source.arch.layers}.{i}."
        self._assign(
            self.blocks[i],
            {n.removeprefix(prefix): self.source.tensor(n) for n in self.source.block(i).values()},
        )
        for name, p in self.blocks[i].named_parameters():
            if p.is_meta:
                raise GwqError(
                    f"{self.source.folder}: tensor {prefix}{name} is missing; download the model again"
                )
        return self.blocks[i]

    def drop(self, i):
        _drop(self.blocks[i])

    def run(self, i, hidden):
        """Output of loaded block i, called with what the model passes to it."""
        out = self.blocks[i](hidden, *self.stands[i].args, **self.stands[i].kwargs)
        return out[0] if isinstance(out, tuple) else out

    def embed(self, ids):
        """Hidden states (1, ctx, hidden) before block 0; every stand notes its arguments."""
        self.model.base_model(input_ids=ids, use_cache=False)
        return self.stands[0].seen

    @property
    def knows_arguments(self) -> bool:
        """Whether `embed` has run, so that blocks know what the model passes to them."""
        return self.stands[0].args is not None

    def logits_size(self, tokens):
        """Floats in the logits of one of the windows (samples, ctx), once the head is loaded."""
        return tokens.shape[1] * len(self.head.weight)

    def logits(self, ids, hidden):
        """float32 (ctx, vocab) from the output of the last block, for ids (1, ctx)."""
        self.stands[-1].given.give = hidden
        logits = self.model(input_ids=ids, use_cache=False).logits[0].float()
        self.stands[-1].given.give = None
        return logits
