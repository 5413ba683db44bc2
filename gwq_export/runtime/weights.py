"""The tensors of an open file as layers, checked against the model's config."""

import contextlib
from collections.abc import Sequence
from os import PathLike

import numpy as np

from gwq_export.arch.config import Config, read_config
from gwq_export.arch.parts import TensorRow
from gwq_export.arch.rope import Rope
from gwq_export.errors import GwqError
from gwq_export.format.outliers import Outliers
from gwq_export.format.reader import Reader, Tensor
from gwq_export.format.types import TYPES
from gwq_export.native.cuda import MAX_HEAD, pool_of
from gwq_export.native.library import F32, Pool, lib
from gwq_export.native.matrix import Linear, Matrix, Split
from gwq_export.native.ops import CACHE
from gwq_export.runtime.guard import FileGuard
from gwq_export.runtime.layers import (
    FeedForward,
    FeedForwardLayer,
    Layer,
    Norm,
    Normalize,
    unchanged,
)
from gwq_export.runtime.moe import Experts, SharedExpert
from gwq_export.runtime.page_cache import bring_in


def _own(outliers: Outliers | None) -> Outliers | None:
    """A copy of a side-table, once checked never to change.

    Its columns and offsets are where kernels write and read; the bytes of tiles are only numbers,
    whatever becomes of the file.
    """
    return outliers and (outliers[0].copy(), outliers[1].copy())


class _Table:
    """The tensors of one table of the architecture, such as those of block i.

    rows: of the table. prefix: what comes before a row's name in the file. Names of matrices and
    vectors are whole ("attn_q.weight"); `linear`, `split` and `norm` take them without ".weight".
    pool: where they are put.
    """

    def __init__(
        self,
        reader: Reader,
        config: Config,
        rows: Sequence[TensorRow],
        pool: Pool,
        prefix: str = "",
    ) -> None:
        self.reader = reader
        self.pool = pool
        self.rows = {row.gguf: row for row in rows}
        self.prefix = prefix
        self.dims = config.dims
        self.eps = config.eps
        self.layer_norm = config.arch.layer_norm

    def shape(self, name: str) -> tuple[int, ...]:
        """What the config says that the tensor's shape is."""
        return tuple(self.dims[d] for d in self.rows[name].shape)

    def matrices(self, name: str, shape: tuple[int, ...]) -> list[Matrix]:
        """Those of a tensor: one, or one for each expert."""
        tensor = self._required(name, shape)
        return [
            self.pool.matrix(Matrix(t.name, t.type, t.shape, t.data, _own(t.outliers)))
            for t in tensor.matrices()
        ]

    def matrix(self, name: str) -> Matrix:
        """The one of a tensor that has no experts."""
        return self.matrices(name, self.shape(name))[0]

    def values(self, name: str, size: int) -> np.ndarray:
        """All values of a tensor, float32 (size,)."""
        return self._required(name, (size,)).dequantize()

    def vector(self, name: str, size: int) -> F32:
        """The same, in the pool."""
        return self.pool.floats(self.values(name, size))

    def optional_vector(self, name: str, size: int) -> F32 | None:
        """All values of a tensor (size,), or None if the file lacks it."""
        tensor = self._find(name, (size,))
        return None if tensor is None else self.pool.floats(tensor.dequantize())

    def linear(self, *names: str) -> Linear:
        """Matrices that share an input, with the biases that the file has."""
        matrices = [self.matrix(f"{name}.weight") for name in names]
        biases = [
            self.optional_vector(f"{name}.bias", m.rows)
            for name, m in zip(names, matrices, strict=True)
        ]
        return Linear(matrices, biases)

    def split(self, name: str, *widths: int) -> Split:
        """One matrix in the place of several, which have `widths` outputs."""
        matrix = self.matrix(f"{name}.weight")
        return Split(matrix, widths, self.optional_vector(f"{name}.bias", matrix.rows))

    def norm(self, name: str, width: int) -> Normalize:
        """The norm of activations (n, width); `unchanged` where there is none."""
        row = self.rows.get(f"{name}.weight")
        if row is None:
            return unchanged
        size = self.dims[row.shape[0]]
        find = self.optional_vector if row.optional else self.vector
        weight = find(row.gguf, size)
        if weight is None:
            return unchanged
        bias = self.vector(f"{name}.bias", size) if f"{name}.bias" in self.rows else None
        if bias is None and self.layer_norm:
            bias = self.pool.floats(np.zeros(size, np.float32))
        return Norm(weight, bias, self.eps, width // size)

    def _find(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        name = self.prefix + name
        tensor = self.reader.tensors.get(name)
        if tensor is not None and tensor.shape != shape:
            raise GwqError(
                f"{self.reader.path}: tensor {name} has shape {tensor.shape}, expected {shape}; "
                "export the model again"
            )
        return tensor

    def _required(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._find(name, shape)
        if tensor is None:
            raise GwqError(
                f"{self.reader.path}: tensor {self.prefix}{name} is missing; export the model again"
            )
        return tensor


class Weights:
    """All tensors of a model, checked against its config. Safe to share between threads.

    file: a path, or an open Reader. threads: of the pool, None: all CPUs; or a pool to share.
    cache: type of the KV caches, one of `native.ops.CACHE`; None: f16, or f32 beside float32
    matrices. device: "cpu", "cuda" or "cuda:N", unless a pool is given. Raises GwqError.
    """

    def __init__(
        self,
        file: str | PathLike[str] | Reader,
        threads: int | Pool | None = None,
        cache: str | None = None,
        device: str = "cpu",
    ) -> None:
        self.reader = file if isinstance(file, Reader) else Reader(file)
        c = self.config = read_config(self.reader)
        for part in self.reader.parts:
            with contextlib.suppress(OSError):  # what is wrong is found when it is computed with
                bring_in(part.path)
        self.guard = FileGuard(part.file for part in self.reader.parts)
        lib()  # a missing library is said before a wrong number of threads
        self.pool = threads if isinstance(threads, Pool) else pool_of(device, threads)
        if self.pool.on_device and c.head_dim > MAX_HEAD:
            raise GwqError(
                f"{self.reader.path}: {c.arch.gguf} with attention heads of {c.head_dim} numbers is"
                f" more than the CUDA kernels take ({MAX_HEAD}); use --device cpu"
            )
        outer = _Table(self.reader, c, (*c.arch.first, *c.arch.last), self.pool)
        self.embed = outer.matrix("token_embd.weight")
        self.positions: Matrix | None = None
        if "position_embd.weight" in outer.rows:
            self.positions = outer.matrix("position_embd.weight")
        self.norm = outer.norm("output_norm", c.dim)
        head = self.embed
        if "output.weight" in self.reader.tensors:
            (head,) = outer.matrices("output.weight", (c.vocab, c.dim))
        self.head = Linear([head])
        self.layers = [self._layer(i) for i in range(c.layers)]
        # FP16 halves what attention reads; beside float32 matrices it would be the least precise
        # number of all
        exact = all(t.type.name == "f32" for t in self.reader.tensors.values())
        if cache not in (None, *CACHE):
            raise GwqError(
                f"a KV cache of type {cache} is not known: choose from {', '.join(CACHE)}"
            )
        self.cache_type = TYPES[cache or ("f32" if exact else "f16")]
        if c.head_dim % self.cache_type.unit:
            raise GwqError(
                f"a KV cache of type {cache} needs heads of whole {self.cache_type.unit}s, "
                f"not {c.head_dim}: choose f16"
            )
        self.rope_style = lib().GWQ_ROPE_PAIRS if c.arch.rope == "pairs" else lib().GWQ_ROPE_HALVES
        pairs = c.rope.rotated // 2 if c.rope else 0
        freqs = outer.optional_vector("rope_freqs.weight", pairs)
        short = outer.optional_vector("rope_factors_short.weight", pairs)
        long = outer.optional_vector("rope_factors_long.weight", pairs)
        # divisors of the frequencies (rotated / 2), in contexts up to the original one and longer
        self._short_divisors = short or freqs
        self._long_divisors = long or freqs

    def rope_tables(
        self, positions: int, ctx: int, first: int = 0
    ) -> dict[Rope, tuple[np.ndarray, np.ndarray]]:
        """{rope: (cos, sin)}, float32 (positions - first, rotated / 2), of all ropes of the layers.

        They begin at position `first`. ctx: of the whole context; how long it is may decide on the
        frequencies.
        """
        c = self.config
        tables = {}
        ropes = {rope for layer in self.layers for rope in (layer.rope, layer.key_rope) if rope}
        for rope in ropes:
            divisors = None
            if c.rope and rope.of_keys == c.rope.of_keys:
                longer = ctx > rope.original
                divisors = self._long_divisors if longer else self._short_divisors
            tables[rope] = rope.table(positions, divisors.array if divisors else None, first)
        return tables

    def _layer(self, i: int) -> Layer:
        c = self.config
        table = _Table(self.reader, c, c.arch.block, self.pool, f"blk.{i}.")
        q, kv = c.dims["q"], c.dims["kv"]
        qkv: Linear | Split
        if "attn_qkv.weight" in table.rows:
            qkv = table.split("attn_qkv", q, kv, kv)
        else:
            qkv = table.linear("attn_q", "attn_k", "attn_v")
        ffn = self._experts(table) if c.experts else self._feed_forward(table)
        rope = None
        if c.turned[i]:
            rope = c.rope_swa if c.windows[i] else c.rope
        attn_norm = table.norm("attn_norm", c.dim)
        ffn_norm = table.norm("ffn_norm", c.dim)
        if c.parallel and "ffn_norm.weight" not in table.rows:
            ffn_norm = attn_norm
        return Layer(
            attn_norm=attn_norm,
            qkv=qkv,
            q_norm=table.norm("attn_q_norm", q),
            k_norm=table.norm("attn_k_norm", kv),
            attn_output=table.linear("attn_output"),
            attn_post_norm=table.norm("post_attention_norm", c.dim),
            ffn_norm=ffn_norm,
            ffn=ffn,
            ffn_post_norm=table.norm("post_ffw_norm", c.dim),
            window=c.windows[i],
            rope=rope,
            key_rope=rope and rope.of_keys,
        )

    def _activation(self) -> int:
        """The architecture's, of enum gwq_activation."""
        return getattr(lib(), f"GWQ_{self.config.arch.activation.upper()}")

    def _experts(self, table: _Table) -> FeedForwardLayer:
        c = self.config
        names = [name for name in table.rows if "_exps" in name]  # gate, up, down
        shared = None
        if "ffn_up_shexp.weight" in table.rows:
            share = table.values("ffn_gate_inp_shexp.weight", c.dim)
            gate_up = table.linear("ffn_gate_shexp", "ffn_up_shexp")
            shared = SharedExpert(self.pool, share, gate_up, table.linear("ffn_down_shexp"))
        gate, up, down = (table.matrices(name, table.shape(name)) for name in names)
        return Experts(
            table.linear("ffn_gate_inp"),
            [Linear(pair) for pair in zip(gate, up, strict=True)],
            [Linear([matrix]) for matrix in down],
            c.experts_used,
            c.experts_normed,
            self._activation(),
            shared,
        )

    def _feed_forward(self, table: _Table) -> FeedForwardLayer:
        width = self.config.ffn
        fused = table.rows["ffn_up.weight"].shape[0] == "gate_up"
        gated = fused or "ffn_gate.weight" in table.rows
        inputs: Linear | Split
        if fused:
            inputs = table.split("ffn_up", width, width)
        elif gated:
            inputs = table.linear("ffn_gate", "ffn_up")
        else:
            inputs = table.linear("ffn_up")
        return FeedForward(inputs, gated, table.linear("ffn_down"), self._activation())
