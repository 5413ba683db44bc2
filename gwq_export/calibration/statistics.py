"""Statistics of gradients, summed up over samples."""

import functools
import threading
from collections import Counter

import numpy as np

from gwq_export.compute.linalg import add_gram, mirror

# per weight: name -> how a sample's gradient g is accumulated; the mean over samples is kept
STATISTICS = {
    "abs": lambda g: g.abs(),
    "mean": lambda g: g,
    "square": lambda g: g * g,
}
# Per matrix, x its input and z its output at a token: "hessian" (cols, cols) is the mean over
# tokens of x x^T, "rows" (rows,) that of (dL/dz)^2 with L the loss summed over a sample's tokens.
# To second order an error E of the matrix then adds sum(rows * diag(E hessian E^T)) / 2 nats per
# token to the loss, and as much KL divergence (a Kronecker-factored Fisher matrix, arXiv
# 1503.05671). "columns" (cols,): the mean over tokens of |dL/dz|^2 x^2, the Fisher information of a
# column's weights without assuming that x and dL/dz are independent. Of the decoder's matrices
# only.
FACTORS = ("hessian", "rows")
COLUMNS = "columns"
# An expert's Hessian is the mean over the tokens that were routed to it, its rows the mean over all
# tokens, so that their product is its part of the loss.
ENOUGH = 16  # tokens that say something of an expert; with fewer, every weight of it counts alike


class Tap(threading.local):
    """Notes input x (tokens, cols) and output z (.., tokens, rows) of modules while they run, of
    those that do, for every thread its own.
    """

    _handles = ()

    def __init__(self):
        self.x, self.z = {}, {}

    def attach(self, modules):
        self._handles = [
            m.register_forward_hook(functools.partial(self._note, name))
            for name, m in modules.items()
        ]
        return self

    def _note(self, name, module, args, output):
        self.x[name], self.z[name] = args[0].detach().reshape(-1, args[0].shape[-1]), output

    def take(self):
        """({module: x}, {module: z}) of the run before, which are forgotten here."""
        seen, self.x, self.z = (self.x, self.z), {}, {}
        return seen

    def remove(self):
        for handle in self._handles:
            handle.remove()


class Totals:
    """Sums of statistics, by weight.

    Matrices that share an input share its Hessian. `reached`: tokens that each has seen.
    """

    def __init__(self, statistics, tokens):
        self.per_weight = [s for s in statistics if s in STATISTICS]
        self.factors = [s for s in statistics if s in (*FACTORS, COLUMNS)]
        self.by_output = [s for s in self.factors if s != "hessian"]  # need gradients of outputs
        self.samples, self.tokens, self.length = len(tokens), tokens.numel(), tokens.shape[1] - 1
        self.sums, self.shared, self.hessians, self.reached = {}, {}, {}, Counter()

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
        """Factors of one sample:

        {name: x (tokens, cols)} and {name: gradient of the mean loss (tokens, rows)}.
        """
        owner = {}
        for name, x in inputs.items():
            first = owner.setdefault(
                (x.data_ptr(), x.shape), name
            )  # views of one tensor, all alive
            self.shared[name] = first
            self.reached[name] += len(x)
            if first == name and "hessian" in self.factors:
                if name not in self.hessians:
                    self.hessians[name] = x.new_zeros(2 * x.shape[1:])
                add_gram(self.hessians[name], x)
            g = gradients[name].reshape(len(x), -1) if self.by_output else None
            if "rows" in self.factors:
                self._add((name, "rows"), (g * g).sum(0) * (self.length**2 / self.tokens))
            if COLUMNS in self.factors:
                self._add(
                    (name, COLUMNS), (g * g).sum(1) @ (x * x) * (self.length**2 / self.tokens)
                )

    def finish(self):
        """Make means of the sums of x x^T."""
        for name, hessian in self.hessians.items():
            mirror(hessian)
            hessian /= self.reached[name]

    def take(self, name, weight):
        """(weight, {statistic: array}) as numpy float32; once for every weight, in the order in
        which they came.
        """
        nothing = weight.new_zeros(1)
        found = {
            s: self.sums.pop((name, s), nothing).cpu().numpy()
            for s in (*self.per_weight, *self.by_output)
        }
        if "hessian" in self.factors:
            found["hessian"] = (
                self._hessian(name) if self.reached[name] else np.zeros((1, 1), np.float32)
            )
        if self.reached[name] < min(ENOUGH, self.tokens):
            found = _of_magnitude(weight, found)
        return weight.cpu().numpy(), found

    def _hessian(self, name):
        owner = self.shared.pop(name)
        if not isinstance(self.hessians[owner], np.ndarray):  # one array for all that share it
            self.hessians[owner] = self.hessians[owner].cpu().numpy()
        return self.hessians[owner] if owner in self.shared.values() else self.hessians.pop(owner)


def _of_magnitude(weight, found):
    """Statistics by which every rule prefers large weights and every error counts alike: for an
    expert that few tokens saw.

    found: those of the tokens, or zeros. The means of factors are kept, that of the Hessian on its
    diagonal, but far from the smallest float32, also as a product.
    """
    out = {s: STATISTICS[s](weight).cpu().numpy() for s in found if s in STATISTICS}
    for factor, size in zip(("rows", COLUMNS), weight.shape, strict=True):
        if factor in found:
            out[factor] = np.full(size, max(found[factor].mean(), 1e-16), np.float32)
    if "hessian" in found:
        power = max(found["hessian"].diagonal().mean(), 1e-8)
        out["hessian"] = np.eye(weight.shape[1], dtype=np.float32) * np.float32(power)
    return out
