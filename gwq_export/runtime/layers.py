"""The parts of a decoder block, each a few calls of native operations."""

from collections.abc import Callable
from dataclasses import dataclass

from gwq_export.arch.rope import Rope
from gwq_export.native.library import NULL
from gwq_export.native.matrix import Linear


class Norm:
    """RMSNorm, or LayerNorm with a bias, of x (n, repeat, size of the weight)."""

    def __init__(self, weight, bias, eps, repeat=1):
        self.weight, self.bias, self.eps, self.size, self.repeat = (
            weight,
            bias,
            eps,
            weight.array.size,
            repeat,
        )

    def __call__(self, ops, x, n, out):
        """Pointer to the result, which is `out`; out may be x."""
        if self.bias:
            ops.layernorm(
                x, self.weight.ptr, self.bias.ptr, self.eps, n * self.repeat, self.size, out
            )
        else:
            ops.rmsnorm(x, self.weight.ptr, self.eps, n * self.repeat, self.size, out)
        return out


def unchanged(ops, x, n, out):
    """In the place of a Norm that the architecture does not have: the result is x itself."""
    return x


class FeedForward:
    """down(activation(gate) * up), or down(activation(up)) without a gate.

    inputs: makes (gate, up) or (up,).
    """

    def __init__(self, inputs, gated, down, activation):
        self.inputs, self.gated, self.down, self.activation = inputs, gated, down, activation

    def __call__(self, ops, x, n, gate, up, out):
        """x (n, dim) to out (n, dim); gate and up (n, ffn) are work space."""
        self.inputs(ops, x, n, *((gate, up) if self.gated else (gate,)))
        ops.activate(gate, up if self.gated else NULL, n, self.down.cols, self.activation)
        self.down(ops, gate, n, out)


@dataclass
class Layer:
    """One decoder block."""

    attn_norm: Callable
    qkv: Callable
    q_norm: Callable
    k_norm: Callable
    attn_output: Linear
    attn_post_norm: Callable
    ffn_norm: Callable
    ffn: Callable
    ffn_post_norm: Callable
    window: int  # how many positions attention sees, 0: all
    rope: Rope | None
