"""The gains of the norms, tuned once the matrices are coded: a file's norms stay float32, so that
this costs no byte and no time when it runs.

A few steps of Adam (arXiv 1412.6980) on the KL divergence of the file's predictions from the
model's, over all norms at once (norm tweaking, arXiv 2309.02784, which goes block by block). Every
step is a forward and a backward pass as in calibration, one decoded block at a time. Windows that
no step has seen say in the end whether the gains stay.
"""

import functools
import threading

import numpy as np
import torch

from gwq_export.calibration.block_model import BlockModel
from gwq_export.compute.threads import batches, each

# per weight of the decoder's linears: with more the loss is small, and little of it is in the norms
BITS = 4
# forward passes that a calibration takes the time of; with its gradient a pass counts as three
PASSES = 4
WINDOWS = 4  # of calibration, at least: with fewer the judging ones are too few
STEPS = 3
TOKENS = 1024  # of a step, and of the windows that judge
RATE = (
    1 / 12
)  # of the root of the KL divergence: by how much a gain changes in the first step; less in each one after it
MEMORY = 0.8, 0.9  # how much the means of gradients, and of their squares, keep from step to step


def judged(samples, ctx):
    """(windows of each step, windows that judge): arrays of numbers below `samples`; no window does
    both.
    """
    order, most = np.random.default_rng(0).permutation(samples), max(1, TOKENS // ctx)
    held = max(1, min(most, samples // 4))
    rest = order[held:]
    return [
        np.take(rest, np.arange(k * most, k * most + min(most, len(rest))), mode="wrap")
        for k in range(STEPS)
    ], order[:held]


def share(samples, ctx):
    """What it takes beside a calibration of so many windows, as a share of its time."""
    steps, held = judged(samples, ctx)
    return (3 * sum(map(len, steps)) + 2 * len(held)) / (PASSES * samples)


def worthwhile(entries, bits, calibration):
    """Whether to tune the norms of a file of these entries whose decoder linears take so many bits
    per weight.
    """
    found = any(e.linear and e.recipe.curvature and e.recipe.type.bits for e in entries)
    return found and bits < BITS and len(calibration.tokens) >= WINDOWS


def is_norm(name):
    """Whether a tensor of a file is a norm's."""
    return name.endswith(("norm.weight", "norm.bias"))


def norms_of(source):
    """[{module: name of its weight}] of the norms of each block and, last, of what follows the
    blocks; Hugging Face names.
    """
    blocks = [
        {
            row.hf.removesuffix(".weight"): name
            for row, name in source.block(i).items()
            if row.gguf.endswith("norm.weight")
        }
        for i in range(source.layers)
    ]
    return [*blocks, {source.arch.norm.removesuffix(".weight"): source.arch.norm}]


class _Decoded:
    """A Source whose decoder linears are those of an open file (container.Reader)."""

    def __init__(self, source, reader, entries):
        self._source, self._reader = source, reader
        self._matrices = {hf: (e, j) for e in entries if e.linear for j, hf in enumerate(e.sources)}

    def __getattr__(self, name):
        return getattr(self._source, name)

    def tensor(self, name):
        if name not in self._matrices:
            return self._source.tensor(name)
        entry, j = self._matrices[name]
        return torch.from_numpy(
            entry.arrange.inverse(self._reader.tensors[entry.name].matrices()[j].dequantize())
        )


def tune(source, reader, entries, tokens, target, device, progress, work):
    """Factors for the gains, {Hugging Face name of a norm's weight or bias: float32 array}, and the
    KL divergence (nats per token) of the windows that judge, (before, after); no factors where it
    did not fall.

    reader: the file with all but its norms (container.Reader), of whose decoder linears `entries`
    tell. tokens (samples, ctx); target (samples, ctx, dim): the model's hidden states after the
    last block. work: a workdir.Memory, or a Workdir from which another call goes on.
    """
    steps, held = judged(*tokens.shape)
    tuner = _Tuner(_Decoded(source, reader, entries), tokens, target, device, progress, work)
    gains, mean, square = np.zeros((3, tuner.size), np.float32)
    for k, rows in enumerate(steps):
        if not (kept := work.get(f"gains.{k}")):
            kld, gradients = tuner.step(k, gains, rows, held if k == 0 else held[:0])
            if k == 0:
                before = np.array([kld[: len(rows)].mean(), kld[len(rows) :].mean()])
            a, b = MEMORY
            mean, square = (
                a * mean + (1 - a) * gradients.mean(0),
                b * square + (1 - b) * (gradients**2).mean(0),
            )
            direction = (
                mean
                / (1 - a ** (k + 1))
                / (np.sqrt(square / (1 - b ** (k + 1))) + np.float32(1e-12))
            )
            kept = [
                gains - np.float32(RATE * before[0] ** 0.5 * (1 - k / STEPS)) * direction,
                mean,
                square,
                before,
            ]
            work.put(f"gains.{k}", *kept)
            tuner.clear(k)
        gains, mean, square, before = kept
    if not (after := work.get("after")):
        kld, _ = tuner.step(STEPS, gains, held[:0], held)
        after = [np.array(kld.mean())]
        work.put("after", *after)
        tuner.clear(STEPS)
    kld = float(before[1]), float(after[0])
    return (tuner.named(1 + gains) if kld[1] < kld[0] else {}), kld


class _Tuner:
    """Passes through a model whose norms have other gains. `size`: how many gains there are."""

    def __init__(self, source, tokens, target, device, progress, work):
        self.model, self.blocks = BlockModel(source, device), source.layers
        self.tokens, self.target, self.device, self.progress, self.work = (
            tokens.to(device),
            target,
            device,
            progress,
            work,
        )
        self.norms = norms_of(source)
        self.lengths = [[source.shape(name)[0] for name in norms.values()] for norms in self.norms]
        self.size = sum(map(sum, self.lengths))
        self.args = False  # whether the blocks know their arguments

    def _parts(self, flat):
        """The tensor (size,) cut up: a list of parts for each block, and one for what follows."""
        parts = iter(flat.split([n for lengths in self.lengths for n in lengths]))
        return [[next(parts) for _ in lengths] for lengths in self.lengths]

    def named(self, flat):
        """{name of a norm's weight, and of its bias: its part} of an array (size,)."""
        parts = [part.numpy() for parts in self._parts(torch.from_numpy(flat)) for part in parts]
        names = [name.removesuffix("weight") for norms in self.norms for name in norms.values()]
        return {
            name + kind: part
            for name, part in zip(names, parts, strict=True)
            for kind in ("weight", "bias")
        }

    def clear(self, k):
        """Forget what step k has kept."""
        for name in [
            f"{k}.{kind}.{i}"
            for kind in ("state", "upstream", "gradient")
            for i in range(self.blocks + 1)
        ]:
            self.work.drop(name)

    def step(self, k, gains, rows, held):
        """(KL divergence of each of the windows rows and held, gradients (rows, size) of that of
        the rows).
        """
        factors = [
            [p.clone().requires_grad_() for p in part]
            for part in self._parts(torch.from_numpy(1 + gains).to(self.device))
        ]
        every, count = np.concatenate([rows, held]).astype(int), len(rows)
        self._forward(k, factors, every)
        if f"{k}.gradient.{self.blocks}" not in self.work:
            self._end(k, factors[-1][0], every, count)
        for i in reversed(range(self.blocks if count else 0)):
            if f"{k}.gradient.{i}" not in self.work:
                self._backward(k, i, factors[i], count)
            self.progress("norms", *self._done(k, 2 * self.blocks - i))
        found = [self.work.get(f"{k}.gradient.{i}") for i in range(self.blocks + 1)]
        return found[-1][1], np.concatenate([f[0] for f in found if f], axis=1)

    def _done(self, k, blocks):
        return 2 * k * self.blocks + blocks, (2 * STEPS + 1) * self.blocks

    def _state(self, name):
        return torch.from_numpy(self.work.get(name)[0]).to(self.device)

    def _keep(self, name, states):
        self.work.put(name, states.detach().cpu().numpy())

    def _forward(self, k, factors, every):
        model = self.model
        with torch.no_grad():
            if not self.args or f"{k}.state.0" not in self.work:
                model.load_ends()
                self._keep(
                    f"{k}.state.0", torch.cat([model.embed(self.tokens[r][None]) for r in every])
                )
                model.drop_ends()
                self.args = True
            for i in range(self.blocks):
                if f"{k}.state.{i + 1}" not in self.work:
                    with _Gains(model.load(i), self.norms[i], factors[i]):
                        run = torch.no_grad()(functools.partial(model.run, i))
                        self._keep(
                            f"{k}.state.{i + 1}",
                            torch.cat(each(run, self._state(f"{k}.state.{i}").split(1))),
                        )
                    model.drop(i)
                self.progress("norms", *self._done(k, i + 1))

    def _end(self, k, factor, every, count):
        """What follows the last block: keeps KL divergences, gradients of the last norm and of the
        states.
        """
        model, states, here = self.model, self._state(f"{k}.state.{self.blocks}"), threading.local()

        def differentiate(s):
            ids, given = self.tokens[every[s]][None], states[s : s + 1].clone().requires_grad_()
            here.tuned = False
            with torch.no_grad():
                wanted = model.logits(
                    ids, torch.from_numpy(self.target[every[s]])[None].to(self.device)
                )
                p = wanted.softmax(-1)
                least = torch.nn.functional.cross_entropy(wanted, p)
                del wanted
            here.tuned = True
            loss = torch.nn.functional.cross_entropy(model.logits(ids, given), p)
            found = torch.autograd.grad(loss, [given, factor]) if s < count else (None, None)
            return *found, (loss - least).item()

        model.load_ends()
        (path,) = self.norms[-1]
        handle = model.model.get_submodule(path).register_forward_hook(
            lambda module, args, out: out * factor if here.tuned else out
        )
        found = each(differentiate, range(len(every)), model.logits_size(self.tokens))
        upstream, gradient, kld = zip(*found, strict=True)
        handle.remove()
        model.drop_ends()
        if count:
            self._keep(f"{k}.upstream.{self.blocks}", torch.cat(upstream[:count]))
        gradient = (
            torch.stack(gradient[:count]).cpu().numpy()
            if count
            else np.zeros((0, len(factor)), np.float32)
        )
        self.work.put(f"{k}.gradient.{self.blocks}", gradient, np.array(kld))

    def _backward(self, k, i, factors, count):
        model, states, upstream = (
            self.model,
            self._state(f"{k}.state.{i}"),
            self._state(f"{k}.upstream.{i + 1}").clone(),
        )

        def differentiate(s):
            given = states[s : s + 1].clone().requires_grad_()
            lower, *found = torch.autograd.grad(
                model.run(i, given), [given, *factors], upstream[s : s + 1]
            )
            return lower, torch.cat(found)

        gradient = []
        with _Gains(model.load(i), self.norms[i], factors):
            for some in batches(count):
                for s, (lower, found) in zip(some, each(differentiate, some), strict=True):
                    upstream[s] = lower
                    gradient.append(found)
        model.drop(i)
        self._keep(f"{k}.upstream.{i}", upstream)
        self.work.put(f"{k}.gradient.{i}", torch.stack(gradient).cpu().numpy())
        self.work.drop(f"{k}.upstream.{i + 1}")


class _Gains:
    """As long as it lasts, the outputs of a block's norms are multiplied by factors."""

    def __init__(self, block, norms, factors):
        self._modules = [
            (block.get_submodule(path), factor) for path, factor in zip(norms, factors, strict=True)
        ]

    def __enter__(self):
        self._handles = [
            m.register_forward_hook(functools.partial(self._multiply, factor))
            for m, factor in self._modules
        ]

    @staticmethod
    def _multiply(factor, module, args, out):
        return out * factor

    def __exit__(self, *_):
        for handle in self._handles:
            handle.remove()
