"""The tensors of an open file as layers, checked against the model's config."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np

from gwq_export.arch.config import read_config
from gwq_export.arch.rope import Rope
from gwq_export.errors import GwqError
from gwq_export.format.reader import Reader
from gwq_export.native.cuda import MAX_HEAD, Cuda, pool_of, room_of
from gwq_export.native.library import Pool, lib
from gwq_export.native.matrix import Linear, Matrix, Split
from gwq_export.runtime.guard import FileGuard
from gwq_export.runtime.kv_cache import cache_type
from gwq_export.runtime.layers import (
    Attention,
    FeedForward,
    FeedForwardLayer,
    Layer,
    Normalize,
    ShortConv,
    unchanged,
)
from gwq_export.runtime.moe import Experts, SharedExpert
from gwq_export.runtime.page_cache import bring_in
from gwq_export.runtime.placement import Placement, check_layers, place
from gwq_export.runtime.table import Table


@dataclass
class Part:
    """Neighbouring layers of a model that run in the same place.

    pool: where. embed, positions: of the first part alone. norm, head: of the last.
    """

    pool: Pool
    layers: list[Layer]
    embed: Matrix | None = None
    positions: Matrix | None = None
    norm: Normalize = unchanged
    head: Linear | None = None


class Weights:
    """All tensors of a model, checked against its config. Safe to share between threads.

    file: a path, or an open Reader. threads: of the CPU, None: all CPUs; or a pool to share.
    cache: type of the KV caches, one of `native.ops.CACHE`; None: f16, or f32 beside float32
    matrices. device: "cpu", "cuda" or "cuda:N", unless a pool is given. gpu_layers, ctx, reserve:
    which layers run on a device, as `placement.place` takes them. Raises GwqError.

    parts: what runs in one place after what runs in another. placement: None without a device.
    """

    def __init__(
        self,
        file: str | PathLike[str] | Reader,
        threads: int | Pool | None = None,
        cache: str | None = None,
        device: str = "cpu",
        gpu_layers: int | None = None,
        ctx: int | None = None,
        reserve: int = 0,
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
        self.cache_type = cache_type(self.reader, c, cache)
        check_layers(gpu_layers, self.pool.on_device)
        self.placement: Placement | None = None
        if isinstance(self.pool, Cuda):
            room = room_of(self.pool.device)
            self.placement = place(self.reader, c, room, self.cache_type, ctx, gpu_layers, reserve)
        self.parts = self._parts()
        outer = self._outer(self.pool.host)
        self.rope_style = lib().GWQ_ROPE_PAIRS if c.arch.rope == "pairs" else lib().GWQ_ROPE_HALVES
        pairs = c.rope.rotated // 2 if c.rope else 0
        freqs = outer.optional_vector("rope_freqs.weight", pairs)
        short = outer.optional_vector("rope_factors_short.weight", pairs)
        long = outer.optional_vector("rope_factors_long.weight", pairs)
        # divisors of the frequencies (rotated / 2), in contexts up to the original one and longer
        self._short_divisors = short or freqs
        self._long_divisors = long or freqs

    @property
    def where(self) -> str:
        """Which layers run on which device, "" without one."""
        return f"{self.pool.name}: {self.placement}" if self.placement else ""

    @property
    def layers(self) -> list[Layer]:
        """The decoder blocks of all parts."""
        return [layer for part in self.parts for layer in part.layers]

    def rope_tables(
        self, layers: Sequence[Layer], positions: int, ctx: int, first: int = 0
    ) -> dict[Rope, tuple[np.ndarray, np.ndarray]]:
        """{rope: (cos, sin)}, float32 (positions - first, rotated / 2), of all ropes of the layers.

        They begin at position `first`. ctx: of the whole context; how long it is may decide on the
        frequencies.
        """
        tables = {}
        mixers = [layer.mixer for layer in layers if isinstance(layer.mixer, Attention)]
        ropes = {rope for mixer in mixers for rope in (mixer.rope, mixer.key_rope) if rope}
        for rope in ropes:
            divisors = None
            if rope.divided:
                longer = ctx > rope.original
                divisors = self._long_divisors if longer else self._short_divisors
            tables[rope] = rope.table(positions, divisors.array if divisors else None, first)
        return tables

    def _parts(self) -> list[Part]:
        """The layers where `placement` has them: those of the CPU, then those of a device."""
        c, where = self.config, self.placement
        first = where.first if where else 0  # block of the last part
        whole = not where or where.embedding
        if where and not where.layers:
            return [self._part(self.pool.host, 0, c.layers, True, True)]
        last = self._part(self.pool, first, c.layers, whole, True)
        return [last] if whole else [self._part(self.pool.host, 0, first, True, False), last]

    def _part(self, pool: Pool, first: int, end: int, embedding: bool, head: bool) -> Part:
        """Blocks first .. end - 1, with what comes before and after them where that is wanted."""
        c = self.config
        outer = self._outer(pool)
        part = Part(pool, [])
        if embedding:
            part.embed = outer.matrix("token_embd.weight")
            if "position_embd.weight" in outer.rows:
                part.positions = outer.matrix("position_embd.weight")
        if head:
            part.norm = outer.norm(c.arch.norm_gguf, c.dim)
            matrix = part.embed
            if "output.weight" in self.reader.tensors:
                (matrix,) = outer.matrices("output.weight", (c.vocab, c.dim))
            part.head = Linear([matrix or outer.matrix("token_embd.weight")])
        part.layers = [self._layer(i, pool) for i in range(first, end)]
        return part

    def _outer(self, pool: Pool) -> Table:
        """The tensors that are not of a block."""
        arch = self.config.arch
        return Table(self.reader, self.config, (*arch.first, *arch.last), pool)

    def _layer(self, i: int, pool: Pool) -> Layer:
        c = self.config
        table = Table(self.reader, c, c.arch.rows(c.kinds[i]), pool, f"blk.{i}.")
        attn_norm = table.norm("attn_norm", c.dim)
        ffn_norm = table.norm("ffn_norm", c.dim)
        if c.parallel and "ffn_norm.weight" not in table.rows:
            ffn_norm = attn_norm
        mixer = self._attention(table, i) if c.kinds[i] == "attention" else self._shortconv(table)
        return Layer(
            attn_norm=attn_norm,
            mixer=mixer,
            attn_post_norm=table.norm("post_attention_norm", c.dim),
            ffn_norm=ffn_norm,
            ffn=self._experts(table) if c.experts else self._feed_forward(table),
            ffn_post_norm=table.norm("post_ffw_norm", c.dim),
        )

    def _attention(self, table: Table, i: int) -> Attention:
        c = self.config
        q, kv = c.dims["q"], c.dims["kv"]
        qkv: Linear | Split
        if "attn_qkv.weight" in table.rows:
            qkv = table.split("attn_qkv", q, kv, kv)
        else:
            gate = ["attn_gate"] if table.has("attn_gate.weight") else []
            qkv = table.linear("attn_q", "attn_k", "attn_v", *gate)
        rope = None
        if c.turned[i]:
            rope = c.rope_swa if c.windows[i] else c.rope
        return Attention(
            qkv=qkv,
            gated=table.has("attn_gate.weight"),
            q_norm=table.norm("attn_q_norm", q),
            k_norm=table.norm("attn_k_norm", kv),
            output=table.linear("attn_output"),
            window=c.windows[i],
            rope=rope,
            key_rope=rope and rope.of_keys,
        )

    def _shortconv(self, table: Table) -> ShortConv:
        c = self.config
        weight = table.values("shortconv.conv.weight")
        return ShortConv(
            inputs=table.linear("shortconv.in_proj"),
            weight=table.pool.floats(np.ascontiguousarray(weight.T)),
            taps=c.taps,
            output=table.linear("shortconv.out_proj"),
        )

    def _activation(self) -> int:
        """The architecture's, of enum gwq_activation."""
        return getattr(lib(), f"GWQ_{self.config.arch.activation.upper()}")

    def _experts(self, table: Table) -> FeedForwardLayer:
        c = self.config
        names = [name for name in table.rows if "_exps" in name]  # gate, up, down
        shared = None
        if "ffn_up_shexp.weight" in table.rows:
            share = table.values("ffn_gate_inp_shexp.weight")
            gate_up = table.linear("ffn_gate_shexp", "ffn_up_shexp")
            shared = SharedExpert(table.pool, share, gate_up, table.linear("ffn_down_shexp"))
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

    def _feed_forward(self, table: Table) -> FeedForwardLayer:
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
