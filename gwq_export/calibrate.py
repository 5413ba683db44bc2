"""Gradients of the next-token cross-entropy with respect to every weight, one decoder block at a time.

Forward keeps only the hidden states between blocks; backward reloads each block, runs it again on its kept input and
differentiates. Peak memory is that of one block with its gradients, or of embedding and head with one sample's logits if
they are larger, plus (blocks + 1) x samples x ctx x hidden floats. The result is that of a whole-model backward pass.
Blocks run as transformers' own modules, so rope, masks and attention variants come from there.
"""

import functools
import hashlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from gwq_export import GwqError
from gwq_export.unfused import unfuse

STATISTICS = {  # per weight: name -> how a sample's gradient g is accumulated; the mean over samples is kept
    "abs": lambda g: g.abs(),
    "mean": lambda g: g,
    "square": lambda g: g * g,
}
# Per matrix, x its input and z its output at a token: "hessian" (cols, cols) is the mean over tokens of x x^T, "rows" (rows,)
# that of (dL/dz)^2 with L the loss summed over a sample's tokens. To second order an error E of the matrix then adds
# sum(rows * diag(E hessian E^T)) / 2 nats per token to the loss, and as much KL divergence (a Kronecker-factored Fisher
# matrix, arXiv 1503.05671).
FACTORS = ("hessian", "rows")
# An expert's Hessian is the mean over the tokens that were routed to it, its rows the mean over all tokens, so that their
# product is its part of the loss.
ENOUGH = 16  # tokens that say something of an expert; with fewer, every weight of it counts alike


@dataclass
class Calibration:
    """What calibration used and found. `losses`: mean cross-entropy (nats per token) of each sample."""

    tokens: torch.Tensor  # (samples, ctx) int64
    losses: list = field(default_factory=list)
    reached: dict = field(default_factory=dict)  # matrix of an expert -> how many of the tokens were routed to it

    @property
    def loss(self):
        """Mean cross-entropy, nats per token."""
        return sum(self.losses) / len(self.losses)

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


@contextmanager
def _weightless():
    """Modules made in here have buffers, such as rope frequencies, but no weights."""
    handle = register_module_parameter_registration_hook(lambda module, name, weight: weight if weight is None else _emptied(weight))
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
    """In the place of a decoder block: notes what the model passes to it and hands on `give` or its input."""

    def __init__(self):
        super().__init__()
        self.args = self.kwargs = self.seen = self.give = None

    def forward(self, hidden, *args, **kwargs):
        self.args, self.kwargs, self.seen = args, kwargs, hidden
        return hidden if self.give is None else self.give


class BlockModel:
    """A transformers model whose decoder blocks are loaded one at a time from a Source."""

    def __init__(self, source, device):
        from transformers import AutoConfig, AutoModelForCausalLM

        self.source, self.device = source, device
        try:
            config = AutoConfig.from_pretrained(source.folder)
            config.use_cache = False
            attention = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"  # sdpa knows no soft-capping
            with _weightless():
                self.model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
        except Exception as e:  # transformers raises many kinds for a config it does not accept
            raise GwqError(f"{source.folder}/config.json: transformers does not accept it ({' '.join(str(e).split())[:200]})") from None
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
                part._buffers.update({name: b.to(device) for name, b in part.named_buffers(recurse=False)})
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
        _drop(self.blocks[i])

    def run(self, i, hidden):
        """Output of loaded block i, called with what the model passes to it."""
        out = self.blocks[i](hidden, *self.stands[i].args, **self.stands[i].kwargs)
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


class _Tap:
    """Notes input x (tokens, cols) and output z (.., tokens, rows) of modules while they run, of those that do."""

    def __init__(self, modules):
        self.x, self.z = {}, {}
        self._handles = [m.register_forward_hook(functools.partial(self._note, name)) for name, m in modules.items()]

    def _note(self, name, module, args, output):
        self.x[name], self.z[name] = args[0].detach().reshape(-1, args[0].shape[-1]), output

    def clear(self):
        self.x, self.z = {}, {}

    def remove(self):
        for handle in self._handles:
            handle.remove()


class _Totals:
    """Sums of statistics, by weight. Matrices that share an input share its Hessian. `reached`: tokens that each has seen."""

    def __init__(self, statistics, tokens):
        self.per_weight = [s for s in statistics if s in STATISTICS]
        self.factors = [s for s in statistics if s in FACTORS]
        self.samples, self.tokens, self.length = len(tokens), tokens.numel(), tokens.shape[1] - 1
        self.sums, self.shared, self.reached = {}, {}, Counter()

    def _add(self, key, value):
        if key in self.sums:
            self.sums[key] += value
        else:
            self.sums[key] = value

    def weight(self, name, gradient):
        """Per-weight statistics of one sample's gradient of the mean loss."""
        for s in self.per_weight:
            self._add((name, s), STATISTICS[s](gradient) / self.samples)

    def factor(self, inputs, gradients):
        """Factors of one sample: {name: x (tokens, cols)} and {name: gradient of the mean loss (tokens, rows)}."""
        owner = {}
        for name, x in inputs.items():
            first = owner.setdefault((x.data_ptr(), x.shape), name)  # views of one tensor, all alive
            self.shared[name] = first
            self.reached[name] += len(x)
            if first == name and "hessian" in self.factors:
                self._add((name, "hessian"), x.T @ x / self.tokens)
            if "rows" in self.factors:
                g = gradients[name].reshape(len(x), -1)
                self._add((name, "rows"), (g * g).sum(0) * (self.length**2 / self.tokens))

    def take(self, name, weight):
        """(weight, {statistic: array}) as numpy float32."""
        found = self._of_magnitude(name, weight) if self.reached[name] < min(ENOUGH, self.tokens) else self._seen(name)
        return weight.cpu().numpy(), {s: v if isinstance(v, np.ndarray) else v.cpu().numpy() for s, v in found.items()}

    def _seen(self, name):
        found = {s: self.sums.pop((name, s)) for s in (*self.per_weight, *(f for f in self.factors if f == "rows"))}
        if "hessian" in self.factors:
            key = self.shared[name], "hessian"
            if not isinstance(self.sums[key], np.ndarray):  # one array for all that share it
                if self.reached[name] != self.tokens:
                    self.sums[key] *= self.tokens / self.reached[name]
                self.sums[key] = self.sums[key].cpu().numpy()
            found["hessian"] = self.sums[key]
        return found

    def _of_magnitude(self, name, weight):
        """Statistics by which every rule prefers large weights and every error counts alike: for an expert that few tokens saw."""
        found = {s: accumulated(weight) for s, accumulated in STATISTICS.items() if s in self.per_weight}
        rows = power = weight.new_zeros(1)  # mean squares of its outputs' gradients and of its inputs
        if self.reached[name]:
            rows = self.sums.get((name, "rows"), rows)
            if "hessian" in self.factors:
                power = self.sums[self.shared[name], "hessian"].diagonal() * self.tokens / self.reached[name]
        if "rows" in self.factors:
            found["rows"] = rows.mean().clamp(min=1e-16).repeat(len(weight))  # far from the smallest float32, also times the other
        if "hessian" in self.factors:
            found["hessian"] = power.mean().clamp(min=1e-8).repeat(weight.shape[1]).diag()
        return found


def gradients(source, calibration, statistics, ends=(), device="cpu", progress=lambda phase, done, total: None):
    """Yield (Hugging Face name, weight, {statistic: array}) for every linear weight of the decoder.

    Blocks come last to first, each block's tensors in the order of the architecture, experts one by one; then those of `ends`
    (embedding, head). statistics: names from STATISTICS, float32 of the weight's shape, and FACTORS.
    `calibration.losses` is filled before the first tensor is yielded, `reached` before those of its block.
    """
    model, tokens = BlockModel(source, device), calibration.tokens.to(device)
    samples, blocks = len(tokens), source.layers
    calibration.losses.clear()
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
        block, totals = model.load(i), _Totals(statistics, tokens)
        linears = {row.hf: name for row, name in source.block(i).items() if row.linear}
        weights = {name: block.get_parameter(hf) for hf, name in linears.items()}
        wanted = {name: w.requires_grad_() for name, w in weights.items()} if totals.per_weight else {}
        tap = _Tap({n: block.get_submodule(hf.removesuffix(".weight")) for hf, n in linears.items()})
        for s in range(samples):
            given = states[i][s : s + 1].clone().requires_grad_()
            tap.clear()
            output = model.run(i, given)
            outputs = tap.z if "rows" in totals.factors else {}
            found = torch.autograd.grad(output, [given, *wanted.values(), *outputs.values()], upstream[s : s + 1], allow_unused=True)
            for name, g in zip(wanted, found[1:], strict=False):
                if g is not None:  # of an expert without a token
                    totals.weight(name, g)
            totals.factor(tap.x, dict(zip(outputs, found[1 + len(wanted) :], strict=True)))
            upstream[s] = found[0]  # last: the gradient of a block's last matrix is a view of it
            del found, output
        tap.remove()
        states.pop()
        calibration.reached |= {name: totals.reached[name] for row, name in source.block(i).items() if row.expert is not None}
        for name, w in weights.items():
            yield name, *totals.take(name, w.detach())
        del weights, wanted, tap, totals
        model.drop(i)
        progress("backward", blocks - i, blocks)
    if ends:
        yield from _end_gradients(model, tokens, last, upstream, statistics, ends)


def _end_gradients(model, tokens, last, upstream, statistics, ends):
    """The same for embedding and head. A tied matrix gets the sum of its two gradients, and factors that stand for both."""
    model.load_ends()
    arch, totals = model.source.arch, _Totals(statistics, tokens)
    weights = {name: model.end(name).requires_grad_() for name in ends}
    tap = _Tap({"head": model.head} if totals.factors else {})
    for s, ids in enumerate(tokens):
        loss = model.loss(ids[None], last[s : s + 1].clone().requires_grad_())
        if totals.factors:
            totals.factor({"head": tap.x["head"]}, {"head": torch.autograd.grad(loss, tap.z["head"], retain_graph=True)[0]})
        outputs = [(loss, torch.ones_like(loss))]
        if arch.embed in weights:
            outputs.append((model.embed(ids[None]), upstream[s : s + 1]))
        outputs, given = zip(*outputs, strict=True)
        if totals.per_weight:
            for name, g in zip(weights, torch.autograd.grad(outputs, list(weights.values()), given), strict=True):
                totals.weight(name, g)
    tap.remove()
    factors = _end_factors(totals, tokens, upstream * model.source.embedding_scale) if totals.factors else {}
    for name, w in weights.items():
        kind = "tied" if model.source.tied else "head" if name == arch.head else "embed"
        found = {s: totals.sums.pop((name, s)) for s in totals.per_weight} | {f: factors[kind][f] for f in totals.factors}
        yield name, w.detach().cpu().numpy(), {s: a.cpu().numpy() for s, a in found.items()}


def _end_factors(totals, tokens, upstream):
    """{"head", "embed", "tied": {factor: tensor}}. A row of the embedding counts as often as its token comes.

    upstream: gradients of the loss with respect to rows of the embedding, (samples, tokens, dim).
    """
    head = {f: totals.sums["head", f] for f in totals.factors}
    g = upstream.reshape(-1, upstream.shape[-1]) * totals.length
    embed = {"hessian": g.T @ g / tokens.numel()}
    if "rows" in head:  # how often a token comes; those that did not come share what Good and Turing give them
        counts = torch.bincount(tokens.reshape(-1), minlength=len(head["rows"])).float()
        unseen = ((counts == 1).sum() / tokens.numel()).clamp(max=0.5)
        embed["rows"] = counts / tokens.numel() * (1 - unseen) + unseen / len(counts)
    tied = dict(embed)
    if len(head) == len(FACTORS):  # s_i H + f_i G as one product, exact where s and f are alike
        s, f = head["rows"].sum(), embed["rows"].sum()
        tied = {"hessian": head["hessian"] * s + embed["hessian"] * f, "rows": (head["rows"] / s + embed["rows"] / f) / 2}
    return {"head": head, "embed": embed, "tied": tied}
