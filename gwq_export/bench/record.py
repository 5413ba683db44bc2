"""The forward pass of a model as a file, from which gwq-bench-native runs it without Python.

native/bench/record.h says what lies where in such a file.
"""

import hashlib
import os
import random
import struct
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np

from gwq_export.bench import suite
from gwq_export.bench.files import context, decode_bytes, model_type, params
from gwq_export.errors import GwqError
from gwq_export.files import check_output, save
from gwq_export.format.types import ABI_HASH, ffi
from gwq_export.native.image import Image
from gwq_export.native.joining import joined
from gwq_export.native.library import CACHE_LINE, isa
from gwq_export.native.ops import top
from gwq_export.native.program import MAX_TOKENS
from gwq_export.native.spans import span
from gwq_export.runtime.buffers import BATCH
from gwq_export.runtime.model import Model
from gwq_export.runtime.session import Session

MAGIC = b"GWQPASS1"
FIRST = 8  # tokens decoded here, for the other machine to compare
# magic, hash of the headers; name, mixture, instruction set, type of KV caches; hash of the header
HEAD = struct.Struct("<8s64s128s128s16s16s32s2Q7qQ16Q")
PASS = struct.Struct("<4qQ")  # tokens, rows of logits, first operation, operations, logits


def record(
    path: str | PathLike[str],
    out: str | PathLike[str],
    prompts: Sequence[int] | None = None,
    gen: int | None = None,
    depths: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Write what a file's forward pass does to `out`.

    Returns {"record" (out), "bytes", "ctx" (positions that there is room for), "prompts"}.

    prompts: lengths that can be measured; of a mixture of experts none can. gen: tokens that can be
    decoded after one another. depths: tokens in the context before SWEEP decoded ones. None: those
    of --suite edge that fit. Raises GwqError.
    """
    check_output(out, "--record")
    model = Model(path)
    reader = model.weights.reader
    if len(reader.parts) > 1:
        raise GwqError("--record takes a model that is one file: join its parts first")
    limit = model.config.ctx
    if prompts is None:
        prompts = [n for n in suite.PROMPTS if n <= limit]
    if model.config.experts:
        prompts = ()
    if gen is None:
        gen = min(suite.GEN, limit - 1)
    if depths is None:
        depths = [n for n in suite.DEPTHS if n + suite.SWEEP < limit]
    if min([gen, *prompts, *depths]) < 0:
        raise GwqError("give -p, -n and --depth no numbers below 0")
    prompts = sorted({n for n in prompts if n})
    before = min(prompts, default=1)
    ctx = max([gen + 1, *prompts, *(n + suite.SWEEP + 1 for n in depths if n)])
    ctx = max(ctx, min(limit, before + FIRST))
    if ctx > limit:
        raise GwqError(
            f"{path}: -p, -n and --depth need a context of {ctx} and the model's is"
            f" {limit}; use smaller numbers"
        )
    session = model.session(ctx)
    (forward,) = session.parts
    recorded = [(n, rows, *forward.recorded(n, rows, ctx)) for n, rows in passes(prompts)]
    memory, tables = forward.touched
    image = Image(memory, tables, span(np.frombuffer(reader.file.buffer, np.uint8)), _tables(model))
    ops: list[tuple[int, bytes]] = []
    listed: list[bytes] = []
    for n, rows, recorder, logits in recorded:
        image.scratch([*recorder.own, span(logits.array)])
        of_pass = joined(recorder.ops) if n <= MAX_TOKENS else recorder.ops
        at = image.place(logits.ptr) if rows else 0
        listed.append(PASS.pack(n, rows, sum(count for count, _ in ops), len(of_pass), at))
        ops.append((len(of_pass), image.of(of_pass)))
    ids = random.Random(0).choices(range(model.config.vocab), k=ctx)  # as `worker` has them
    sections = [
        (image.constants, 1),
        (image.matrices, ffi.sizeof("gwq_matrix")),
        (struct.pack(f"<{len(image.experts)}Q", *image.experts), 8),
        (b"".join(data for _, data in ops), ffi.sizeof("gwq_op")),
        (b"".join(listed), PASS.size),
        (struct.pack(f"<{len(prompts)}q", *prompts), 8),
        (struct.pack(f"<{ctx}i", *ids), 4),
        (_first(session, ids[:before]), 8),
    ]
    _, header_end = reader.headers[0]
    facts = [
        *(MAGIC, ABI_HASH.encode()),
        *(_text(reader.metadata.get("general.name", ""), 128), _text(model_type(reader), 128)),
        *(isa().encode(), model.weights.cache_type.name.encode()),
        hashlib.sha256(reader.file.buffer[:header_end]).digest(),
        *(reader.nbytes, header_end, params(reader), context(reader), decode_bytes(reader)),
        *(ctx, model.config.vocab, BATCH, before, image.memory_bytes),
    ]
    body = bytearray(_padded(HEAD.size))
    for data, size in sections:
        facts += [len(body), len(data) // size]
        body += data + bytes(_padded(len(data)) - len(data))
    body[: HEAD.size] = HEAD.pack(*facts)
    save(out, bytes(body), "--record")
    return {"record": os.fspath(out), "bytes": len(body), "ctx": ctx, "prompts": list(prompts)}


def passes(prompts: Sequence[int]) -> list[tuple[int, int]]:
    """[(tokens, rows of logits)] of the passes that prompts take, the longest first.

    That of one token is always there. Batches of a prompt but the last one have no logits.
    """
    found = {(1, 1)}
    for n in prompts:
        found |= {(BATCH, 0)} if n > BATCH else set()
        found |= {((n - 1) % BATCH + 1, 1)}
    return sorted(found, reverse=True)


def _padded(n: int) -> int:
    return -(-n // CACHE_LINE) * CACHE_LINE


def _text(text: Any, size: int) -> bytes:
    """UTF-8 of less than `size` bytes."""
    return str(text).encode()[: size - 1].decode(errors="ignore").encode()


def _tables(model: Model) -> dict[int, tuple[int, int]]:
    """{first byte of a matrix: those of its outliers and of their offsets}."""
    reader = model.weights.reader
    base = np.frombuffer(reader.file.buffer, np.uint8).ctypes.data
    return {
        m.offset: (m.outliers[0].ctypes.data - base, m.outliers[1].ctypes.data - base)
        for tensor in reader.tensors.values()
        if tensor.outliers is not None
        for m in tensor.matrices()
        if m.outliers is not None
    }


def _first(session: Session, ids: Sequence[int]) -> bytes:
    """(id int32, logit float32) of the first tokens that are decoded after some."""
    found = b""
    for _ in range(min(FIRST, session.ctx - len(ids) + 1)):
        (logits,) = session.forward(ids)
        ids = top(logits, 1).tolist()
        found += struct.pack("<if", *ids, logits[ids[0]])
    session.rewind()
    return found
