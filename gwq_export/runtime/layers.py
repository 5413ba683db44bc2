"""The parts of a decoder block, each a few calls of native operations.

Activations are float pointers: "x (n, dim)" stands for n tokens in rows of dim floats.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from gwq_export.arch.rope import Rope
from gwq_export.native.library import F32, NULL, Pointer
from gwq_export.native.matrix import Linear, Split
from gwq_export.native.ops import Ops

# (ops, x, n, out) -> pointer to the result, which is `out` or x itself
Normalize: TypeAlias = Callable[[Ops, Pointer, int, Pointer], Pointer]


class FeedForwardLayer(Protocol):
    """x (n, dim) to out (n, dim)."""

    width: int  # floats of a token that gate and up must have room for

    def __call__(
        self, ops: Ops, x: Pointer, n: int, gate: Pointer, up: Pointer, out: Pointer
    ) -> None:
        """Compute; out may be x, and gate and up (n, width) are work space."""


class Norm:
    """RMSNorm, or LayerNorm where there is a bias.

    weight, bias: (size,). eps: added to the mean square (variance). repeat: how many vectors of
    that size a token has, such as its heads.
    """

    def __init__(self, weight: F32, bias: F32 | None, eps: float, repeat: int = 1) -> None:
        self.weight = weight
        self.bias = bias
        self.eps = eps
        self.size = weight.size
        self.repeat = repeat

    def __call__(self, ops: Ops, x: Pointer, n: int, out: Pointer) -> Pointer:
        """Normalize x (n, repeat, size) into out, which may be x; returns out."""
        if self.bias:
            ops.layernorm(
                x, self.weight.ptr, self.bias.ptr, self.eps, n * self.repeat, self.size, out
            )
        else:
            ops.rmsnorm(x, self.weight.ptr, self.eps, n * self.repeat, self.size, out)
        return out


def unchanged(ops: Ops, x: Pointer, n: int, out: Pointer) -> Pointer:
    """Stand in for a Norm that the architecture does not have: the result is x itself."""
    return x


class FeedForward:
    """A dense feed-forward layer: down(activation(gate) * up), or down(activation(up)) ungated.

    inputs: makes gate and up (n, ffn) of x if `gated`, else only up. activation: enum
    gwq_activation.
    """

    def __init__(self, inputs: Linear | Split, gated: bool, down: Linear, activation: int) -> None:
        self.inputs = inputs
        self.gated = gated
        self.down = down
        self.activation = activation
        self.width = down.cols

    def __call__(
        self, ops: Ops, x: Pointer, n: int, gate: Pointer, up: Pointer, out: Pointer
    ) -> None:
        """x (n, dim) to out (n, dim), which may be x; gate and up (n, ffn) are work space."""
        self.inputs(ops, x, n, *((gate, up) if self.gated else (gate,)))
        ops.activate(gate, up if self.gated else NULL, n, self.down.cols, self.activation)
        self.down(ops, gate, n, out)


@dataclass
class Attention:
    """What a block with a KV cache mixes tokens by.

    gated: qkv has a fourth result, (n, heads): what a head gives is multiplied by its sigmoid.
    """

    qkv: Linear | Split
    gated: bool
    q_norm: Normalize
    k_norm: Normalize
    output: Linear
    window: int  # how many positions attention sees, 0: all
    rope: Rope | None  # of queries
    key_rope: Rope | None


@dataclass
class ShortConv:
    """What a block with a state mixes tokens by: a gated short convolution.

    inputs: makes (n, 3, dim) of x (n, dim). weight: (taps, dim).
    """

    inputs: Linear
    weight: F32
    taps: int
    output: Linear


@dataclass
class Layer:
    """One decoder block."""

    attn_norm: Normalize
    mixer: Attention | ShortConv
    attn_post_norm: Normalize
    ffn_norm: Normalize
    ffn: FeedForwardLayer
    ffn_post_norm: Normalize
