"""Gradients of the next-token cross-entropy with respect to every weight, one decoder block at a time.

Forward keeps only the hidden states between blocks; backward reloads each block, runs it again on its kept input and
differentiates. Peak memory is that of one block with its gradients, or of embedding and head with one sample's logits if
they are larger, plus (blocks + 1) x samples x ctx x hidden floats. The result is that of a whole-model backward pass.
Blocks run as transformers' own modules, so rope, masks and attention variants come from there.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch

from gwq_export import GwqError

STATISTICS = {  # name -> how a sample's gradient g is accumulated; the mean over samples is kept
    "abs": lambda g: g.abs(),
    "mean": lambda g: g,
    "square": lambda g: g * g,
}


@dataclass
class Calibration:
    """What calibration used and found. `losses`: mean cross-entropy (nats per token) of each sample."""

    tokens: torch.Tensor  # (samples, ctx) int64
    losses: list = field(default_factory=list)

    @property
    def hash(self):
        """SHA-256 of the token ids, for the file's provenance keys."""
        return hashlib.sha256(self.tokens.numpy().astype("<i4").tobytes()).hexdigest()


def sample_tokens(ids, samples, ctx, seed, bos=None):
    """(samples, ctx) int64 windows of the token list `ids`, drawn without overlap in a seeded order.

    Each window starts with `bos` when the tokenizer adds one. Fewer samples when the text is short; one shorter
    window when it holds less than ctx tokens. Raises GwqError below 2 tokens.
    """
    body = ctx - (bos is not None)
    if len(ids) < 2:
        raise GwqError("the calibration text is empty: give a longer one with --calib FILE")
    body = min(body, len(ids))
    starts = np.arange(0, len(ids) - body + 1, body)
    starts = np.sort(np.random.default_rng(seed).permutation(starts)[:samples])
    windows = np.stack([ids[s : s + body] for s in starts])
    if bos is not None:
        windows = np.concatenate([np.full((len(windows), 1), bos), windows], axis=1)
    return torch.from_numpy(windows.astype(np.int64))


class _Stand(torch.nn.Module):
    """In the place of a decoder block: notes what the model passes to it and hands on `give` or its input."""

    def __init__(self):
        super().__init__()
        self.kwargs = self.seen = self.give = None

    def forward(self, hidden, **kwargs):
        self.kwargs, self.seen = kwargs, hidden
        return hidden if self.give is None else self.give


class BlockModel:
    """A transformers model whose decoder blocks are loaded one at a time from a Source."""

    def __init__(self, source, device):
        from transformers import AutoConfig, AutoModelForCausalLM

        self.source, self.device = source, device
        try:
            config = AutoConfig.from_pretrained(source.folder)
            config.use_cache = False
            with torch.device("meta"):
                self.model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
        except Exception as e:  # transformers raises many kinds for a config it does not accept
            raise GwqError(f"{source.folder}/config.json: transformers does not accept it ({' '.join(str(e).split())[:200]})") from None
        self.model.eval().requires_grad_(False)
        parent, _, name = source.arch.layers.rpartition(".")
        parent = self.model.get_submodule(parent)
        self.blocks = list(getattr(parent, name))  # on the meta device until loaded
        self.stands = [_Stand() for _ in self.blocks]
        setattr(parent, name, torch.nn.ModuleList(self.stands))
        for path, module in list(self.model.named_modules()):
            if any(b.is_meta for b in module.buffers(recurse=False)):  # rope frequencies follow from the config
                self.model.set_submodule(path, type(module)(config).to(device))

    def load_ends(self):
        """Embedding, last norm and head: on hand only while they are used, as they are large."""
        arch = self.source.arch
        names = [arch.embed, arch.norm, *([] if self.source.tied else [arch.head])]
        self._assign(self.model, {n: self.source.tensor(n) for n in names})
        if self.source.tied:
            self._module(arch.head).weight = self.model.get_parameter(arch.embed)

    def drop_ends(self):
        for name in (self.source.arch.embed, self.source.arch.norm, self.source.arch.head):
            self._module(name).to("meta")

    def _module(self, name):
        return self.model.get_submodule(name.removesuffix(".weight"))

    def _assign(self, module, tensors):
        tensors = {n: t.to(self.device) for n, t in tensors.items()}
        try:
            unknown = module.load_state_dict(tensors, assign=True, strict=False).unexpected_keys
        except RuntimeError as e:
            raise GwqError(f"{self.source.folder}: weights do not fit the config ({str(e).splitlines()[-1].strip()})") from None
        if unknown:
            raise GwqError(f"{self.source.folder}: tensor {unknown[0]} does not fit the config, by which there is none")
        module.requires_grad_(False)

    def load(self, i):
        """Block i with its weights."""
        prefix = f"{self.source.arch.layers}.{i}."
        self._assign(self.blocks[i], {n.removeprefix(prefix): self.source.tensor(n) for n in self.source.block(i).values()})
        for name, p in self.blocks[i].named_parameters():
            if p.is_meta:
                raise GwqError(f"{self.source.folder}: tensor {prefix}{name} is missing; download the model again")
        return self.blocks[i]

    def drop(self, i):
        self.blocks[i].to("meta")

    def run(self, i, hidden):
        """Output of loaded block i, called with what the model passes to it."""
        out = self.blocks[i](hidden, **self.stands[i].kwargs)
        return out[0] if isinstance(out, tuple) else out

    def embed(self, ids):
        """Hidden states (1, ctx, hidden) before block 0; every stand notes its arguments."""
        self.model.base_model(input_ids=ids, use_cache=False)
        return self.stands[0].seen

    def loss(self, ids, hidden):
        """Mean cross-entropy of the tokens after the first, from the output of the last block."""
        self.stands[-1].give = hidden
        logits = self.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        self.stands[-1].give = None
        return torch.nn.functional.cross_entropy(logits, ids[0, 1:])


def _accumulate(totals, name, gradient, statistics, samples):
    for s in statistics:
        value = STATISTICS[s](gradient) / samples
        if (name, s) in totals:
            totals[name, s] += value
        else:
            totals[name, s] = value


def _take(totals, name, weight, statistics):
    """(weight, {statistic: array}) as numpy float32."""
    return weight.cpu().numpy(), {s: totals.pop((name, s)).cpu().numpy() for s in statistics}


def gradients(source, calibration, statistics, ends=(), device="cpu", progress=lambda phase, done, total: None):
    """Yield (Hugging Face name, weight, {statistic: mean over samples}) for every linear weight of the decoder.

    Blocks come last to first, each block's tensors in the order of the architecture; then those of `ends`
    (embedding, head). Arrays are float32 of the weight's shape. statistics: names from STATISTICS.
    `calibration.losses` is filled before the first tensor is yielded.
    """
    model, tokens = BlockModel(source, device), calibration.tokens.to(device)
    samples, blocks = len(tokens), source.layers
    with torch.no_grad():
        model.load_ends()
        states = [torch.cat([model.embed(ids[None]) for ids in tokens])]  # hidden states between blocks
        model.drop_ends()
        for i in range(blocks):
            model.load(i)
            states.append(torch.cat([model.run(i, h[None]) for h in states[i]]))
            model.drop(i)
            progress("forward", i + 1, blocks)
    last = states.pop()
    upstream = torch.empty_like(last)
    model.load_ends()
    for s, ids in enumerate(tokens):
        output = last[s : s + 1].clone().requires_grad_()
        loss = model.loss(ids[None], output)
        upstream[s] = torch.autograd.grad(loss, output)[0]
        calibration.losses.append(loss.item())
    if not np.isfinite(calibration.losses).all():
        raise GwqError("the model's loss on the calibration text is not finite: the model is damaged or not a language model")
    model.drop_ends()
    if not ends:
        del last, output
    for i in reversed(range(blocks)):
        block, totals = model.load(i), {}
        linears = {row.hf: name for row, name in source.block(i).items() if row.linear}
        weights = {name: block.get_parameter(hf).requires_grad_() for hf, name in linears.items()}
        for s in range(samples):
            given = states[i][s : s + 1].clone().requires_grad_()
            found = torch.autograd.grad(model.run(i, given), [given, *weights.values()], upstream[s : s + 1])
            upstream[s] = found[0]
            for name, g in zip(weights, found[1:], strict=True):
                _accumulate(totals, name, g, statistics, samples)
            del found
        states.pop()
        for name, w in weights.items():
            yield name, *_take(totals, name, w.detach(), statistics)
        del weights
        model.drop(i)
        progress("backward", blocks - i, blocks)
    if ends:
        yield from _end_gradients(model, tokens, last, upstream, statistics, ends)


def _end_gradients(model, tokens, last, upstream, statistics, ends):
    """The same for embedding and head. A tied matrix gets the sum of its two gradients."""
    model.load_ends()
    totals, weights = {}, {name: model.model.get_parameter(name).requires_grad_() for name in ends}
    for s, ids in enumerate(tokens):
        loss = model.loss(ids[None], last[s : s + 1])
        outputs = [(loss, torch.ones_like(loss)), (model.embed(ids[None]), upstream[s : s + 1])]
        outputs, given = zip(*((o, g) for o, g in outputs if o.requires_grad), strict=True)
        found = torch.autograd.grad(outputs, list(weights.values()), given)
        for name, g in zip(weights, found, strict=True):
            _accumulate(totals, name, g, statistics, len(tokens))
    for name, w in weights.items():
        yield name, *_take(totals, name, w.detach(), statistics)
