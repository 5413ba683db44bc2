"""Statistics of gradients and inputs, summed over calibration samples.

Two families, both per matrix W (rows, cols) with input x and output z = W x at every token:

**Per weight** (STATISTICS): an array of the weight's shape, the mean over samples of a function of
the sample's gradient. Only some rules that choose outliers read them.

**Factors of the Fisher information** (FACTORS), which everything else reads. With L the loss in
nats, summed over the tokens of a sample, and g = dL/dz at a token:

    H = mean over tokens of x x^T        "hessian", (cols, cols)
    s = mean over tokens of g^2          "rows", (rows,), elementwise
    G = mean over tokens of g g^T        "outputs", in groups of rows

An error E of the matrix changes z by E x, and the loss, to second order, by half of the error's
quadratic form under the loss's second derivative:

    loss(W + E) - loss(W)  =  1/2 sum_ij,kl  E_ij F_ij,kl E_kl         nats per token

There is no linear term: labels sampled from the model's own predictions have a mean gradient of
zero, and for them F is the Fisher information, the mean of g_i x_j g_k x_l over tokens. The same
form with the same 1/2 is the KL divergence between the predictions before and after, so that one
number predicts both. F has (rows cols)^2 entries. The Kronecker-factored approximation (K-FAC,
arXiv 1503.05671) takes g and x as independent and different tokens as uncorrelated, which makes F
the product of G and H. Predictions keep only the diagonal s of G, so that rows do not interact:

    predicted loss  =  1/2 sum_i s_i E_i H E_i^T,     E_i row i of E

Codes are found under more of it: of G, groups of GROUP rows after one another are kept, as an
array (rows, min(rows, GROUP)) whose row i has the products of row i with the rows of its group.

Labels from the text instead of the model give the empirical Fisher information.

Conventions:

- Autograd differentiates the *mean* loss of a sample over its `length` = ctx - 1 predicted tokens,
  so its gradients are g / length. Their squares times length^2 / tokens, summed over all `tokens` =
  samples x ctx tokens, are the mean of g^2.
- An expert sees some of the tokens. Its H is the mean over the tokens routed to it, its s is the
  mean over *all* tokens (zero where it was not asked), so that the product s_i H is still its part
  of the loss per token.
- "columns" (COLUMNS), (cols,): the mean over tokens of |g|^2 x^2, the diagonal of the Fisher
  information summed over a column's weights, without the assumption that g and x are independent.
  Only the decoder's matrices have it, not embedding and head.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from gwq_export.compute.linalg import add_gram, mirror, pieces
from gwq_export.compute.products import multiply
from gwq_export.compute.threads import each

# name -> what is taken of a sample's gradient g; the mean over samples is kept
STATISTICS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "abs": lambda g: g.abs(),
    "mean": lambda g: g,
    "square": lambda g: g * g,
}
FACTORS = ("hessian", "rows")
OUTPUTS = "outputs"
COLUMNS = "columns"
GROUP = 1024  # rows of a group of "outputs"
MIN_EXPERT_TOKENS = 16  # fewer say nothing about an expert, and its weights all count alike


class Tap(threading.local):
    """Record the inputs and outputs of modules while they run, for every thread its own.

    x: {name: input (tokens, cols), detached}; z: {name: output (.., tokens, rows), part of the
    graph}; both of the modules that ran since the last `take`, such as the experts that a token
    was routed to.
    """

    def __init__(self) -> None:
        """Called anew in every thread that uses the object."""
        self.x: dict[str, torch.Tensor] = {}
        self.z: dict[str, torch.Tensor] = {}
        self._handles: list[Any] = []

    def attach(self, modules: Mapping[str, torch.nn.Module]) -> Tap:
        """Begin to record {name: module}; returns the Tap itself."""
        self._handles = [
            module.register_forward_hook(functools.partial(self._record, name))
            for name, module in modules.items()
        ]
        return self

    def _record(
        self, name: str, module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor
    ) -> None:
        x = args[0].detach()
        self.x[name] = x.reshape(-1, x.shape[-1])
        self.z[name] = output

    def take(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return (x, z) of this thread's last run and forget them here."""
        x, z = self.x, self.z
        self.x, self.z = {}, {}
        return x, z

    def remove(self) -> None:
        """Stop recording; call it in the thread that called `attach`."""
        for handle in self._handles:
            handle.remove()


class Totals:
    """Sums of the statistics of some matrices over the calibration samples.

    Call `weight` and `factor` for every sample, then `finish`, then `take` for every matrix.
    Matrices that have the same input, such as the query, key and value projections, share one
    Hessian. reached: {name: tokens that the matrix has seen}.
    """

    def __init__(self, statistics: Iterable[str], tokens: torch.Tensor) -> None:
        """statistics: names of what is wanted; tokens: the ids of all samples (samples, ctx)."""
        statistics = list(statistics)
        self.per_weight = [s for s in statistics if s in STATISTICS]
        self.factors = [s for s in statistics if s in (*FACTORS, OUTPUTS, COLUMNS)]
        self.by_output = [s for s in self.factors if s != "hessian"]  # need gradients of outputs
        self.samples = len(tokens)
        self.tokens = tokens.numel()
        self.length = tokens.shape[1] - 1  # predicted tokens of a sample
        self.sums: dict[tuple[str, str], torch.Tensor] = {}  # (name, statistic) -> sum
        self.shared: dict[str, str] = {}  # name -> name under which its Hessian is kept
        self.hessians: dict[str, Any] = {}  # tensors, then arrays
        self.reached: Counter[str] = Counter()

    def _add(self, name: str, statistic: str, value: torch.Tensor) -> None:
        key = name, statistic
        if key in self.sums:
            self.sums[key] += value
        else:
            self.sums[key] = value

    def weight(self, name: str, gradient: torch.Tensor) -> None:
        """Add the per-weight statistics of one sample's gradient (rows, cols) of its mean loss."""
        for statistic in self.per_weight:
            self._add(name, statistic, STATISTICS[statistic](gradient) / self.samples)

    def factor(
        self, inputs: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor]
    ) -> None:
        """Add the factors of one sample.

        inputs: {name: x (tokens, cols)}; gradients: {name: gradient of the sample's mean loss with
        respect to z (.., tokens, rows)}, read only where `by_output` names something.
        """
        owners: dict[tuple[int, torch.Size], str] = {}
        for name, x in inputs.items():
            # matrices with the same input hold views of one tensor; all of them are alive here, so
            # that equal addresses mean equal tensors
            owner = owners.setdefault((x.data_ptr(), x.shape), name)
            self.shared[name] = owner
            self.reached[name] += len(x)
            if owner == name and "hessian" in self.factors:
                if name not in self.hessians:
                    self.hessians[name] = x.new_zeros(2 * x.shape[1:])
                add_gram(self.hessians[name], x)
            if self.by_output:
                g = gradients[name].reshape(len(x), -1)
                self._add_by_output(name, x, g)

    def _add_by_output(self, name: str, x: torch.Tensor, g: torch.Tensor) -> None:
        """Add "rows", "outputs" and "columns" of one sample: x (tokens, cols), g (tokens, rows)."""
        scale = self.length**2 / self.tokens  # g is the gradient of a mean over `length` tokens
        if "rows" in self.factors:
            self._add(name, "rows", (g * g).sum(0) * scale)
        if OUTPUTS in self.factors:
            self._add(name, OUTPUTS, _products_in_groups(g) * scale)
        if COLUMNS in self.factors:
            self._add(name, COLUMNS, (g * g).sum(1) @ (x * x) * scale)

    def finish(self) -> None:
        """Turn the sums of x x^T into means over the tokens that each matrix has seen."""
        for name, hessian in self.hessians.items():
            mirror(hessian)
            hessian /= self.reached[name]

    def take(self, name: str, weight: torch.Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return (weight, {statistic: array}), float32, and forget the matrix.

        Call it once for every matrix. Those that share a Hessian get the same array object, so
        that it need not be factorized for each of them. An expert that fewer than
        MIN_EXPERT_TOKENS tokens reached gets statistics by which its weights all count alike.
        """
        zero = weight.new_zeros(1)  # of an expert that no token reached
        statistics = {
            s: self.sums.pop((name, s), zero).cpu().numpy()
            for s in (*self.per_weight, *self.by_output)
        }
        if "hessian" in self.factors:
            reached = self.reached[name] > 0
            statistics["hessian"] = self._hessian(name) if reached else np.zeros((1, 1), np.float32)
        if self.reached[name] < min(MIN_EXPERT_TOKENS, self.tokens):
            statistics = _uninformed(weight, statistics)
        elif OUTPUTS in statistics:
            _discount(statistics[OUTPUTS], self.reached[name])
        return weight.cpu().numpy(), statistics

    def _hessian(self, name: str) -> np.ndarray:
        """The Hessian as an array, one for all that share it; dropped with the last of them."""
        owner = self.shared.pop(name)
        if not isinstance(self.hessians[owner], np.ndarray):
            self.hessians[owner] = self.hessians[owner].cpu().numpy()
        return self.hessians[owner] if owner in self.shared.values() else self.hessians.pop(owner)


def _products_in_groups(g: torch.Tensor) -> torch.Tensor:
    """g^T g for g (tokens, rows), of which groups of rows are kept: (rows, min(rows, GROUP))."""
    rows = g.shape[1]
    out = g.new_zeros(rows, min(rows, GROUP))

    def fill(part: slice) -> None:
        multiply(g[:, part].T, g[:, part], out[part, : part.stop - part.start])

    each(fill, pieces(rows, GROUP))
    return out


def _discount(outputs: np.ndarray, tokens: int) -> None:
    """Multiply products of different rows by tokens / (tokens + width), in place.

    A mean over few tokens has them by chance, like the Hessian's (`quantization.curvature`).
    """
    rows, width = outputs.shape
    at = np.arange(rows), np.arange(rows) % width
    own = outputs[at]
    outputs *= np.float32(tokens / (tokens + width))
    outputs[at] = own


def _uninformed(weight: torch.Tensor, measured: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Statistics of an expert that few tokens reached: nothing in them tells weights apart.

    Rules that compare gradients prefer large weights, and errors of all weights cost the same: s is
    constant and H a multiple of the identity. Their sizes are the means of what was measured, so
    that the expert's predicted loss keeps its size beside the others', but not so small that a
    product of the two underflows in float32. Its rows do not interact: "outputs" is left out.
    """
    out = {s: STATISTICS[s](weight).cpu().numpy() for s in measured if s in STATISTICS}
    for factor, size in zip(("rows", COLUMNS), weight.shape, strict=True):
        if factor in measured:
            out[factor] = np.full(size, max(measured[factor].mean(), 1e-16), np.float32)
    if "hessian" in measured:
        mean = max(measured["hessian"].diagonal().mean(), 1e-8)
        out["hessian"] = np.eye(weight.shape[1], dtype=np.float32) * np.float32(mean)
    return out
