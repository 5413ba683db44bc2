"""The tensors of an open file as layers, checked against the model's config."""

from gwq_export.arch.config import read_config
from gwq_export.errors import GwqError
from gwq_export.format.reader import Reader
from gwq_export.format.types import TYPES
from gwq_export.native.library import F32, Pool, lib
from gwq_export.native.matrix import Linear, Matrix, Split
from gwq_export.native.ops import CACHE
from gwq_export.runtime.layers import FeedForward, Layer, Norm, unchanged
from gwq_export.runtime.moe import Experts


class Weights:
    """All tensors of a model, checked against its config.

    Raises GwqError. Safe to share between threads.
    """

    def __init__(self, file, threads=None, cache=None):
        """file: a path, or a Reader that is open.

        cache: type of KV caches (native.CACHE); None: f16, or f32 beside float32 matrices.
        """
        self.reader = file if isinstance(file, Reader) else Reader(file)
        c = self.config = read_config(self.reader)
        lib()
        self.pool = Pool(threads)
        outer = {row.gguf: row for row in (*c.arch.first, *c.arch.last)}
        self.embed = self._matrix("token_embd.weight", (c.vocab, c.dim))
        self.positions = "position_embd.weight" in outer and self._matrix(
            "position_embd.weight", (c.ctx, c.dim)
        )
        self.norm = self._norm(outer, "", "output_norm", c.dim)
        tied = "output.weight" not in self.reader.tensors
        self.head = Linear(
            [self.embed if tied else self._matrix("output.weight", (c.vocab, c.dim))]
        )
        self.layers = [self._layer(i) for i in range(c.layers)]
        # FP16 halves what attention reads; beside float32 matrices it would be the coarsest number
        # of all
        exact = all(t.type.name == "f32" for t in self.reader.tensors.values())
        if cache not in (None, *CACHE):
            raise GwqError(
                f"a KV cache of type {cache} is not known: choose from {', '.join(CACHE)}"
            )
        self.cache_type = TYPES[cache or ("f32" if exact else "f16")]
        if c.head_dim % self.cache_type.unit:
            raise GwqError(
                f"a KV cache of type {cache} needs heads of whole {self.cache_type.unit}s, not {c.head_dim}: choose f16"
            )
        self.rope_style = lib().GWQ_ROPE_PAIRS if c.arch.rope == "pairs" else lib().GWQ_ROPE_HALVES
        pairs = c.rope.rotated // 2 if c.rope else 0
        names = ("rope_freqs", "rope_factors_short", "rope_factors_long")
        freqs, short, long = (
            self._vector(f"{name}.weight", pairs, optional=True) for name in names
        )
        self._divisors = {
            False: short or freqs,
            True: long or freqs,
        }  # of the frequencies, by whether the context is a long one

    def _layer(self, i):
        c, rows, at = self.config, {row.gguf: row for row in self.config.arch.block}, f"blk.{i}."
        dims = c.dims

        def norm(name, width=c.dim):
            return self._norm(rows, at, name, width)

        def linear(*names):
            shapes = [tuple(dims[d] for d in rows[f"{name}.weight"].shape) for name in names]
            matrices = [
                self._matrix(f"{at}{name}.weight", shape)
                for name, shape in zip(names, shapes, strict=True)
            ]
            return matrices, [
                self._vector(f"{at}{name}.bias", s[0], optional=True)
                for name, s in zip(names, shapes, strict=True)
            ]

        def split(name, *widths):
            (matrix,), (bias,) = linear(name)
            return Split(matrix, widths, bias)

        if "attn_qkv.weight" in rows:
            qkv = split("attn_qkv", dims["q"], dims["kv"], dims["kv"])
        else:
            qkv = Linear(*linear("attn_q", "attn_k", "attn_v"))
        activation = getattr(lib(), f"GWQ_{c.arch.activation.upper()}")
        if c.experts:
            shapes = {
                name: tuple(dims[d] for d in rows[name].shape) for name in rows if "_exps" in name
            }
            gate, up, down = (self._matrices(at + name, shape) for name, shape in shapes.items())
            inputs, outputs = (
                [Linear(pair) for pair in zip(gate, up, strict=True)],
                [Linear([m]) for m in down],
            )
            ffn = Experts(
                Linear(*linear("ffn_gate_inp")),
                inputs,
                outputs,
                c.experts_used,
                c.experts_normed,
                activation,
            )
        else:
            fused = rows["ffn_up.weight"].shape[0] == "gate_up"
            gated = fused or "ffn_gate.weight" in rows
            if fused:
                inputs = split("ffn_up", c.ffn, c.ffn)
            else:
                inputs = (
                    Linear(*linear("ffn_gate", "ffn_up")) if gated else Linear(*linear("ffn_up"))
                )
            ffn = FeedForward(inputs, gated, Linear(*linear("ffn_down")), activation)
        return Layer(
            attn_norm=norm("attn_norm"),
            qkv=qkv,
            q_norm=norm("attn_q_norm", dims["q"]),
            k_norm=norm("attn_k_norm", dims["kv"]),
            attn_output=Linear(*linear("attn_output")),
            attn_post_norm=norm("post_attention_norm"),
            ffn_norm=norm("ffn_norm"),
            ffn=ffn,
            ffn_post_norm=norm("post_ffw_norm"),
            window=c.windows[i],
            rope=(c.rope_swa if c.windows[i] else c.rope) if c.arch.turned(i) else None,
        )

    def _tensor(self, name, shape, optional=False):
        tensor = self.reader.tensors.get(name)
        if tensor is None:
            if optional:
                return None
            raise GwqError(f"{self.reader.path}: tensor {name} is missing; export the model again")
        if tensor.shape != shape:
            raise GwqError(
                f"{self.reader.path}: tensor {name} has shape {tensor.shape}, expected {shape}; export the model again"
            )
        return tensor

    def _vector(self, name, size, optional=False):
        tensor = self._tensor(name, (size,), optional)
        return tensor and F32(tensor.dequantize())

    def _matrix(self, name, shape):
        return self._matrices(name, shape)[0]

    def _matrices(self, name, shape):
        """Those of a tensor: one, or one for each expert."""
        return [
            Matrix(t.name, t.type, t.shape, t.data, t.outliers)
            for t in self._tensor(name, shape).matrices()
        ]

    def _norm(self, rows, at, name, width):
        """The norm `at`+name of activations of this width; rows: {name: row} of the table that may
        have it.
        """
        row = rows.get(f"{name}.weight")
        size = row and self.config.dims[row.shape[0]]
        weight = row and self._vector(f"{at}{name}.weight", size, row.optional)
        if not weight:
            return unchanged
        bias = f"{name}.bias" in rows and self._vector(f"{at}{name}.bias", size)
        return Norm(weight, bias, self.config.eps, width // size)

    def rope_tables(self, positions):
        """{Rope: (cos, sin)}, float32 (positions, rotated / 2) each, for a context of so many
        positions.
        """
        c, found = self.config, {}
        for rope in {layer.rope for layer in self.layers} - {None}:
            divisors = self._divisors[positions > rope.original] if rope == c.rope else None
            found[rope] = tuple(
                F32(t) for t in rope.table(positions, divisors.array if divisors else None)
            )
        return found
