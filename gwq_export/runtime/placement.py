"""Which layers of a model run on a device: as many as its memory takes, or as many as asked for.

Layers are counted as llama.cpp's --n-gpu-layers does: the head is one, and the first to go; then
come the blocks, the last ones first, so that what the layers before them made crosses once. The
embedding, which is not counted, follows when everything else is there and it fits.
"""

from dataclasses import dataclass

from gwq_export.arch.config import Config
from gwq_export.errors import GwqError
from gwq_export.format.reader import Reader, Tensor
from gwq_export.format.types import ROWS, TensorType
from gwq_export.machine import size
from gwq_export.native.cuda import cuda_lib, upload_bytes
from gwq_export.native.matrix import Matrix
from gwq_export.native.program import MAX_TOKENS
from gwq_export.runtime.buffers import BATCH, DEVICE_BATCH, has_shared_expert, widths
from gwq_export.runtime.moe import work_floats
from gwq_export.runtime.states import state_bytes

MARGIN = 256 << 20  # bytes of a device left to graphs, to the seams of its memory, to others
PLANNED = 4096  # positions of a KV cache that there should be room for, unless a context is given
FLOAT = 4


@dataclass(frozen=True)
class Placement:
    """Where the layers of a model run.

    blocks: of the model. layers: of these and the head, how many run on a device. embedding:
    whether it is there too. weights, work: bytes of that device's memory that weights take, and
    a session beside them. room: bytes that there were.
    """

    blocks: int
    layers: int
    embedding: bool
    weights: int
    work: int
    room: int

    @property
    def first(self) -> int:
        """The first block that runs on the device."""
        return self.blocks - max(0, self.layers - 1)

    def __str__(self) -> str:
        """What runs where, after the device's name."""
        need = f"{size(self.weights + self.work)} of {size(self.room)} free"
        if not self.layers:
            return f"none of the {self.blocks + 1} layers; all run on the CPU"
        if self.layers > self.blocks:
            embedding = "and the embedding" if self.embedding else "but not the embedding"
            return f"all {self.layers} layers, {embedding}, {need}"
        on_device = "the head"
        if self.first < self.blocks:
            on_device = f"{_blocks(self.first, self.blocks - 1)} and the head"
        return (
            f"{self.layers} of {self.blocks + 1} layers, {on_device}, {need};"
            f" the embedding and {_blocks(0, self.first - 1)} run on the CPU"
        )


def _blocks(first: int, last: int) -> str:
    return f"block {first}" if first == last else f"blocks {first} to {last}"


class _Sizes:
    """Bytes of a device's memory that the parts of a model take."""

    def __init__(self, reader: Reader, c: Config, positions: int, cache: TensorType) -> None:
        self.config = c
        self.positions = positions
        kv = 2 * positions * cache.nbytes(1, c.dims["kv"])
        state = state_bytes(1, c.taps, c.dim)
        self.held = [kv if kind == "attention" else state for kind in c.kinds]  # by blocks
        self.blocks = [0] * c.layers
        self.head = self.embedding = 0
        self.largest = 0  # matrix, in the file: an upload copies it first
        self.columns = c.dim
        tied = "output.weight" not in reader.tensors
        last = {row.gguf for row in c.arch.last}
        of_block = {f"blk.{i}.{row.gguf}": i for i in range(c.layers) for row in c.arch.block}
        for t in reader.tensors.values():
            if t.companion:
                continue
            taken = self._taken(t)
            if t.name in of_block:
                self.blocks[of_block[t.name]] += taken
            elif (
                t.name in last
                or t.name == "output.weight"
                or (tied and t.name == "token_embd.weight")
            ):
                self.head += taken
            elif t.name in ("token_embd.weight", "position_embd.weight"):
                self.embedding += taken

    def _taken(self, t: Tensor) -> int:
        if len(t.shape) < 2:
            return FLOAT * t.shape[0]
        total = 0
        for m in t.matrices():
            matrix = Matrix(m.name, m.type, m.shape, m.data, m.outliers)
            total += upload_bytes(matrix)
            self.largest = max(self.largest, matrix.nbytes)
            self.columns = max(self.columns, matrix.cols)
        return total

    def work(self, first: int) -> int:
        """Bytes that a session takes for the blocks from `first` on and the head."""
        c = self.config
        ropes = {rope for rope in (c.rope, c.rope_swa) if rope}
        programs = MAX_TOKENS * (MAX_TOKENS + 1) // 2
        # tokens of a prompt (Session.batch), and how many of their logits may be wanted
        batch = min(BATCH if first else DEVICE_BATCH, self.positions)
        logits = min(BATCH, self.positions)
        floats = (
            batch * (sum(widths(c).values()) + max(c.dims["qkv"], c.dims["gate_up"]))
            + (logits + programs) * c.vocab
            + programs * sum(widths(c).values())
            + ROWS * self.columns * MAX_TOKENS
            + self.positions * sum(rope.rotated for rope in ropes)
            + work_floats(batch, c.experts, c.experts_used, c.dim, has_shared_expert(c))
        )
        scratch = 2 * cuda_lib().gwq_scratch_bytes(batch, self.columns)
        return FLOAT * floats + scratch + sum(self.held[first:])


def check_layers(layers: int | None, on_device: bool) -> None:
    """Raise GwqError for a number of layers that cannot be: below 0, or without a device."""
    if layers is None:
        return
    if not on_device:
        raise GwqError(
            f"--gpu-layers {layers} goes with --device cuda: give that too, or leave it out"
        )
    if layers < 0:
        raise GwqError(
            f"--gpu-layers {layers}: give a number from 0, or leave it out for as many as fit"
        )


def place(
    reader: Reader,
    config: Config,
    room: int,
    cache: TensorType,
    ctx: int | None = None,
    layers: int | None = None,
    reserve: int = 0,
) -> Placement:
    """Where the layers of a file should run.

    room: bytes of the device's memory that are free, `reserve` of which are spoken for. cache: type
    of KV caches. ctx: positions of these, None: PLANNED, or fewer if the model has not so many.
    layers: how many are to run on the device, None: as many as there is room for. Raises GwqError
    for a damaged matrix.
    """
    sizes = _Sizes(reader, config, min(ctx or PLANNED, config.ctx), cache)
    whole = config.layers + 1
    most = whole if layers is None else min(whole, layers)
    least = 0 if layers is None else most
    choices = [(whole, True)] if most == whole else []
    choices += [(count, False) for count in range(most, least - 1, -1)]
    room_left = room - reserve - MARGIN
    placements = (_placement(sizes, room, *choice) for choice in choices)
    for placement in placements:
        if placement.weights + max(placement.work, sizes.largest) <= room_left:
            break
    return placement  # the last one whether it fits or not: it is nothing, or what was asked for


def _placement(sizes: _Sizes, room: int, count: int, embedding: bool) -> Placement:
    blocks = sizes.config.layers
    if not count:
        return Placement(blocks, 0, False, 0, 0, room)
    first = blocks + 1 - count
    weights = sum(sizes.blocks[first:]) + sizes.head + (sizes.embedding if embedding else 0)
    return Placement(blocks, count, embedding, weights, sizes.work(first), room)
