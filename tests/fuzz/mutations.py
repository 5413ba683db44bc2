"""Changes of a GGUF file that a stranger, or a broken disk, might make: each a row of a table.

`mutated(file, rng)` applies one to four of them. Everything follows from the seed of `rng`.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable

from gwq_export.format.header import ARRAY, SCALARS, STRING
from gwq_export.format.types import TYPES
from tests.fuzz.gguf import File, Info, Key, pack
from tests.fuzz.texts import bad_json, bad_template, bad_text

WHOLE = [0, 1, 2, 3, -1, 7, 16, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 257, 4095, 4096, 65535]
WHOLE += [65536, 2**20, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63, 2**64 - 1]
REAL = [0.0, -0.0, 1.0, -1.0, 1e-45, 1e-30, 1e30, 3.4e38, math.inf, -math.inf, math.nan, 0.5, 2.0]
TYPE_IDS = [*(t.id for t in TYPES.values()), 3, 12, 14, 39, 77, 0x37515747, 2**32 - 1]
TABLE_SUFFIXES = (b".outliers", b".outlier_offsets")

Mutation = Callable[[File, random.Random], None]


def number_near(value: int | float, rng: random.Random) -> int | float:
    """A number in the place of another."""
    if isinstance(value, float):
        return rng.choice([*REAL, -value, value * 2, value * 1e6, value / 1e6])
    return rng.choice([rng.choice(WHOLE), value + 1, value - 1, value * 2, value // 2, -value])


# --- keys -----------------------------------------------------------------------------------------


def drop_key(file: File, rng: random.Random) -> None:
    file.keys.pop(rng.randrange(len(file.keys)))


def copy_key(file: File, rng: random.Random) -> None:
    key = rng.choice(file.keys)
    name = key.name if rng.random() < 0.3 else bad_text(key.name, rng)
    file.keys.insert(rng.randrange(len(file.keys)), Key(name, key.type, key.data, key.item))


def swap_keys(file: File, rng: random.Random) -> None:
    a, b = rng.choice(file.keys), rng.choice(file.keys)
    a.type, a.data, a.item, b.type, b.data, b.item = b.type, b.data, b.item, a.type, a.data, a.item


def retype_key(file: File, rng: random.Random) -> None:
    key = rng.choice(file.keys)
    if key.type == ARRAY and rng.random() < 0.5:
        key.item = rng.choice([*SCALARS, STRING, ARRAY, 77])
    else:
        key.type = rng.choice([*SCALARS, STRING, ARRAY, 13])


def change_key(file: File, rng: random.Random) -> None:
    key = rng.choice(file.keys)
    if isinstance(key.data, list):
        change_array(key, rng)
    elif isinstance(key.data, bytes):
        key.data = bad_text(key.data, rng)
    else:
        key.data = number_near(key.data, rng)  # type: ignore[arg-type]


def change_number(file: File, rng: random.Random) -> None:
    numbers = [k for k in file.keys if isinstance(k.data, (int, float))]
    if numbers:
        key = rng.choice(numbers)
        key.data = number_near(key.data, rng)  # type: ignore[arg-type]


def rename_architecture(file: File, rng: random.Random) -> None:
    """Another model's architecture, its keys with it."""
    from gwq_export.arch.registry import ARCHS

    before = file.key(b"general.architecture")
    if before is None or not isinstance(before.data, bytes):
        return
    name = rng.choice(sorted({arch.gguf for arch in ARCHS.values()})).encode()
    old, before.data = before.data + b".", name
    for key in file.keys:
        if key.name.startswith(old):
            key.name = name + b"." + key.name[len(old) :]


def change_array(key: Key, rng: random.Random) -> None:
    """Of a vocabulary, its scores, its types, its merges; or of what else is a list."""
    items = key.data
    assert isinstance(items, list)
    if not items:
        items.append(b"" if key.item == STRING else 1)
        return
    at, other = rng.randrange(len(items)), rng.randrange(len(items))
    kind = rng.randrange(7)
    if kind == 0:
        del items[at : at + rng.choice([1, 1, 5, len(items)])]
    elif kind == 1:
        items[at:at] = [items[other]] * rng.choice([1, 1, 5, 1000])
    elif kind == 2:
        items[at], items[other] = items[other], items[at]
    elif kind == 3:
        items[at] = items[other]
    elif kind == 4 and isinstance(items[at], bytes):
        long = b"a" * rng.choice(WHOLE[5:20])
        items[at] = items[at] + items[other] if rng.random() < 0.5 else long
    elif kind == 5:
        rng.shuffle(items)
    else:
        for _ in range(rng.choice([1, 1, 1, 20])):
            at = rng.randrange(len(items))
            x = items[at]
            items[at] = bad_text(x, rng) if isinstance(x, bytes) else number_near(x, rng)


def change_tokenizer(file: File, rng: random.Random) -> None:
    found = [k for k in file.keys if k.name.startswith(b"tokenizer.")]
    if not found:
        return
    key = rng.choice(found)
    if isinstance(key.data, list):
        change_array(key, rng)
    elif isinstance(key.data, bytes):
        of = file.key(rng.choice(found).name)
        assert of is not None
        text = of.data if isinstance(of.data, bytes) else key.data
        key.data = rng.choice([b"gpt2", b"llama", b"t5", b"bert", b"", b"llama-bpe", text])
    else:
        key.data = number_near(key.data, rng)  # type: ignore[arg-type]


def change_json(file: File, rng: random.Random) -> None:
    key = file.key(b"tokenizer.huggingface.json")
    if key is not None and isinstance(key.data, bytes):
        key.data = bad_json(key.data, rng)


def change_template(file: File, rng: random.Random) -> None:
    key = file.key(b"tokenizer.chat_template")
    if key is not None and isinstance(key.data, bytes):
        key.data = bad_template(key.data, rng)


# --- tensors --------------------------------------------------------------------------------------


def drop_tensor(file: File, rng: random.Random) -> None:
    file.tensors.pop(rng.randrange(len(file.tensors)))


def copy_tensor(file: File, rng: random.Random) -> None:
    t = rng.choice(file.tensors)
    name = t.name if rng.random() < 0.3 else bad_text(t.name, rng)
    file.tensors.append(Info(name, t.dims[:], t.type, t.data))


def swap_tensors(file: File, rng: random.Random) -> None:
    a, b = rng.choice(file.tensors), rng.choice(file.tensors)
    if rng.random() < 0.5:
        a.name, b.name = b.name, a.name
    else:
        a.data, b.data = b.data, a.data


def reshape_tensor(file: File, rng: random.Random) -> None:
    """Other dimensions; the data as it was, or as long as the new ones ask for."""
    t = rng.choice(file.tensors)
    kind = rng.randrange(4)
    if kind == 0:
        t.dims = t.dims[::-1]
    elif kind == 1:
        t.dims.append(rng.choice([0, 1, 2]))
    elif kind == 2:
        t.dims[:] = t.dims[: rng.randrange(len(t.dims) + 1)]
    else:
        at = rng.randrange(len(t.dims))
        t.dims[at] = int(number_near(t.dims[at], rng))
    if rng.random() < 0.7:
        fit(t)


def retype_tensor(file: File, rng: random.Random) -> None:
    t = rng.choice(file.tensors)
    t.type = rng.choice(TYPE_IDS)
    if rng.random() < 0.7:
        fit(t)


def fit(t: Info) -> None:
    """As much data as type and shape ask for, if that is a little."""
    found = next((x for x in TYPES.values() if x.id == t.type), None)
    if found is None or not t.dims or not all(0 < n < 1 << 20 for n in t.dims):
        return
    if math.prod(t.dims) > 1 << 20 or (t.dims[0] % found.unit and not found.bits):
        return
    size = found.size(t.dims[::-1])
    t.data = (t.data * (size // max(len(t.data), 1) + 1))[:size] if t.data else bytes(size)


def move_tensor(file: File, rng: random.Random) -> None:
    t = rng.choice(file.tensors)
    t.offset = rng.choice([rng.choice(WHOLE), rng.randrange(1 << 16) * file.alignment])


def change_data(file: File, rng: random.Random) -> None:
    t = rng.choice(file.tensors)
    damage(t, rng, len(t.data))


def change_heads(file: File, rng: random.Random) -> None:
    """Tables, exponents, row scales."""
    tiles = [t for t in file.tensors if t.type > 255]
    if tiles:
        damage(rng.choice(tiles), rng, 64)


def change_tables(file: File, rng: random.Random) -> None:
    """Side-tables, of deltas too."""
    all = file.tensors + (file.deltas.tensors if file.deltas else [])
    tables = [t for t in all if t.name.endswith(TABLE_SUFFIXES)]
    if tables:
        damage(rng.choice(tables), rng, 1 << 30)


def change_floats(file: File, rng: random.Random) -> None:
    """Norms and routers, or whatever has floats."""
    plain = [t for t in file.tensors if t.type == 0 and t.data]
    if plain:
        t = rng.choice(plain)
        at = rng.randrange(len(t.data) // 4) * 4 if len(t.data) >= 4 else 0
        t.data = t.data[:at] + struct.pack("<f", rng.choice(REAL[:-3])) + t.data[at + 4 :]


def damage(t: Info, rng: random.Random, within: int) -> None:
    """Change some bytes of the first `within`."""
    data = bytearray(t.data)
    if not data:
        return
    within = min(within, len(data))
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        at = rng.randrange(within)
        data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256), data[at] ^ 1])
    t.data = bytes(data)


def change_deltas(file: File, rng: random.Random) -> None:
    """The second GGUF of a bridge file, which keeps its checksum."""
    if file.deltas is not None and file.deltas.tensors:
        changes = [change_number, drop_tensor, copy_tensor, reshape_tensor, retype_tensor]
        rng.choice(changes)(file.deltas, rng)


# mutation -> how often, beside the others
MUTATIONS: dict[Mutation, int] = {
    drop_key: 2,
    copy_key: 1,
    swap_keys: 1,
    retype_key: 2,
    change_key: 3,
    change_number: 5,
    rename_architecture: 2,
    change_tokenizer: 6,
    change_json: 8,
    change_template: 6,
    drop_tensor: 1,
    copy_tensor: 1,
    swap_tensors: 2,
    reshape_tensor: 3,
    retype_tensor: 3,
    move_tensor: 1,
    change_data: 4,
    change_heads: 4,
    change_tables: 4,
    change_floats: 2,
    change_deltas: 2,
}
CHOICES = list(MUTATIONS)
WEIGHTS = list(MUTATIONS.values())
MOST = 1 << 20  # bytes of a file
RAW = 0.12  # share of files whose bytes are changed when all else is done


def mutated(file: File, rng: random.Random) -> bytes:
    """The bytes of a file with one to four things changed."""
    file = file.copy()
    for _ in range(rng.choice([1, 1, 1, 2, 3, 4])):
        mutation = rng.choices(CHOICES, WEIGHTS)[0]
        if file.keys and file.tensors:
            mutation(file, rng)
    data = bytearray(pack(file))
    del data[MOST:]
    if rng.random() < RAW:
        raw(data, file.spots, rng)
    return bytes(data)


def raw(data: bytearray, spots: list[tuple[int, int]], rng: random.Random) -> None:
    """Change a count, a length, a type or an offset alone; bytes; the end."""
    kind = rng.randrange(6)
    if kind < 3:
        at, size = rng.choice(spots)
        before = int.from_bytes(data[at : at + size], "little")
        value = int(number_near(before, rng)) & (1 << 8 * size) - 1
        data[at : at + size] = value.to_bytes(size, "little")
    elif kind == 3:
        for _ in range(rng.choice([1, 2, 8])):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 4:
        del data[rng.randrange(len(data)) :]
    else:
        data += bytes(rng.choice([1, 63, 64, 4096]))
