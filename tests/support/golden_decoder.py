"""A slow reader of the gwq format (version 2) to be read, written from docs/format.md alone."""

import itertools
import struct

# type id: (bits of a code, columns to a scale, bytes of scales of a block, columns of a group)
GWQ_TYPES = {
    0x36515747: (6, 16, 48, 16),
    0x35515747: (5, 16, 48, 32),
    0x34515747: (4, 16, 48, 16),
    0x33515747: (3, 32, 24, 32),
    0x32515747: (2, 32, 24, 16),
}
VALUE_FORMATS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
U32, STRING, ARRAY, U64 = 4, 8, 9, 10


class Cursor:
    def __init__(self, data, position=0):
        self.data = data
        self.position = position

    def take(self, layout):
        values = struct.unpack_from("<" + layout, self.data, self.position)
        self.position += struct.calcsize("<" + layout)
        return values

    def value(self, value_type):
        if value_type == STRING:
            return self.take(f"{self.value(U64)}s")[0].decode("utf-8")
        if value_type == ARRAY:
            item_type, count = self.take("IQ")
            return [self.value(item_type) for _ in range(count)]
        return self.take(VALUE_FORMATS[value_type])[0]


def read_container(data):
    """{tensor: (dimensions, innermost first; type id; position in the file)} of a GGUF file."""
    cursor = Cursor(data)
    magic, version, tensor_count, pair_count = cursor.take("4sIQQ")
    if (magic, version) != (b"GGUF", 3):
        raise ValueError("not a GGUF file of version 3")
    metadata = {cursor.value(STRING): cursor.value(cursor.value(U32)) for _ in range(pair_count)}
    if metadata.get("gwq.format_version") != 2:
        raise ValueError("not a gwq file of version 2")
    tensors = {
        cursor.value(STRING): (cursor.take(f"{cursor.value(U32)}Q"), *cursor.take("IQ"))
        for _ in range(tensor_count)
    }
    start = -(-cursor.position // metadata["general.alignment"]) * metadata["general.alignment"]
    return {name: (dims, type_id, start + at) for name, (dims, type_id, at) in tensors.items()}


def row_scales_of_block(b, r, bits):
    """The unsigned 6-bit scales of row r of a block, four from gwq4 on and two at gwq3 and gwq2."""
    if bits >= 4:
        last = b[r] >> 6 | b[16 + r] >> 6 << 2 | b[32 + r] >> 6 << 4
        return b[r] & 63, b[16 + r] & 63, b[32 + r] & 63, last
    high = b[16 + r] & 15 if r < 8 else b[8 + r] >> 4
    return b[r] & 63, b[r] >> 6 | high << 2


def window_at(lines, r, c, bits):
    """The window of row r and column c of a block whose lines of 64 bytes are `lines`."""
    p, at = c // 4, 4 * r + c % 4
    if bits == 2:
        first = 64 * (c // 16) + 4 * r
        k = c % 4 * 4 + p % 4
        return four_bits(lines[first : first + 4], 2 * k)
    if bits == 4:
        return lines[64 * (p // 2) + at] >> 4 * (p % 2) & 15
    quads = 4 if bits == 6 else 8  # of a group
    group, p = divmod(p, quads)
    x = [lines[64 * (quads * bits // 8 * group + k) + at] for k in range(quads * bits // 8)]
    if bits == 3:
        return four_bits(x, 3 * p)
    high = bits - 4
    return x[p // 2] >> 4 * (p % 2) & 15 | (x[-1] >> high * p & (1 << high) - 1) << 4


def four_bits(data, first):
    """Four bits of some bytes from bit `first` on; the bytes' first bit follows their last."""
    number = int.from_bytes(bytes(data) * 2, "little")
    return number >> first & 15


def read_outliers(cursor):
    """The (row, value, column within the tile) of every outlier of the record of one tile."""
    counts = cursor.take("16B")
    rows = [r for level in range(max(counts)) for r in range(16) if counts[r] > level]
    return list(zip(rows, cursor.take(f"{len(rows)}e"), cursor.take(f"{len(rows)}B"), strict=True))


def entry_of(table, bits, window):
    if bits == 6:
        return window - 32
    return table[window] if window < 16 else -1 - table[window - 16]


def tile_weights(shape, table, bits, sub, scales, lines):
    """Yields (row, column, weight in units of the row's scale) of a tile of that shape."""
    for r, c in itertools.product(*map(range, shape)):
        block, column = divmod(c, 64)
        window = window_at(lines[block], r, column, bits)
        scale = row_scales_of_block(scales[block], r, bits)[column // sub] - 32
        # a float: the sign of a zero counts
        yield r, c, float(scale) * entry_of(table, bits, window)


def decode(path, name="w.weight", matrix=0):
    """(rows, columns, float32 weights row after row) of a matrix of the gwq tensor `name`."""
    with open(path, "rb") as file:
        data = file.read()
    tensors = read_container(data)
    (columns, rows, *_), type_id, origin = tensors[name]
    bits, sub, scale_bytes, step = GWQ_TYPES[type_id]
    groups, blocks = -(-rows // 16), -(-columns // 64)
    head = -(-(32 + 32 * groups) // 64) * 64
    stored = -(-(columns - 64 * (blocks - 1)) // step) * step  # columns of the last block
    subs = -(-stored // sub)
    sizes = [(scale_bytes, 128 * bits)] * blocks  # of each block's scales and lines
    sizes[-1] = scale_bytes if subs == 64 // sub else 16 * subs, 2 * bits * stored
    origin += matrix * (head + groups * sum(map(sum, sizes)))
    cursor = Cursor(data, origin)
    table, exponent, _ = cursor.take("16b"), *cursor.take("b15s")
    power = 2.0**exponent
    row_scale = cursor.take(f"{16 * groups}e")
    cursor.position = origin + head
    has_outliers = name + ".outliers" in tensors
    if has_outliers:
        (length, *_), _, records = tensors[name + ".outliers"]
        offsets = tensors[name + ".outlier_offsets"][2] + 4 * matrix * (groups + 1)
        starts = Cursor(data, offsets).take(f"{groups + 1}i")
    weights = [0.0] * (rows * columns)
    for group in range(groups):
        outliers = Cursor(data, records + matrix * length + starts[group]) if has_outliers else None
        for first in range(0, blocks, 4):
            count = min(4, blocks - first)
            here = sizes[first : first + count]
            scales = [(*cursor.take(f"{n}B"), *bytes(scale_bytes - n)) for n, _ in here]
            lines = [(*cursor.take(f"{n}B"), *bytes(128 * bits - n)) for _, n in here]
            shape = min(16, rows - 16 * group), min(64 * count, columns - 64 * first)
            start = 16 * group * columns + 64 * first
            for r, c, weight in tile_weights(shape, table, bits, sub, scales, lines):
                weights[start + r * columns + c] = power * row_scale[16 * group + r] * weight
            for r, value, c in read_outliers(outliers) if has_outliers else ():
                at = start + r * columns + c
                weights[at] = struct.unpack("<f", struct.pack("<f", weights[at] + power * value))[0]
    return rows, columns, weights
