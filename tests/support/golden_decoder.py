"""A reader of the gwq format (version 1), written from docs/format.md alone: plain Python, slow,
and meant to be read.
"""

import struct

# type id: (bits of a code, bits of history, columns that share a scale, bytes of scales per block,
# lines per block)
GWQ_TYPES = {
    0x34515747: (4, 0, 16, 48, 8),
    0x33515747: (3, 1, 32, 24, 6),
    0x32515747: (2, 2, 32, 24, 4),
}
VALUE_FORMATS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
U32, STRING, ARRAY, U64 = 4, 8, 9, 10


class Cursor:
    def __init__(self, data, position=0):
        self.data, self.position = data, position

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
    """The tensors of a GGUF file: name -> (dimensions, innermost first; type id; position in the
    file).
    """
    cursor = Cursor(data)
    magic, version, tensor_count, pair_count = cursor.take("4sIQQ")
    if (magic, version) != (b"GGUF", 3):
        raise ValueError("not a GGUF file of version 3")
    metadata = {cursor.value(STRING): cursor.value(cursor.value(U32)) for _ in range(pair_count)}
    if metadata.get("gwq.format_version") != 1:
        raise ValueError("not a gwq file of version 1")
    tensors = {
        cursor.value(STRING): (cursor.take(f"{cursor.value(U32)}Q"), *cursor.take("IQ"))
        for _ in range(tensor_count)
    }
    start = -(-cursor.position // metadata["general.alignment"]) * metadata["general.alignment"]
    return {
        name: (dimensions, type_id, start + offset)
        for name, (dimensions, type_id, offset) in tensors.items()
    }


def row_scales_of_block(b, r, bits):
    """The unsigned 6-bit scales of row r of a block, four at gwq4 and two at gwq3 and gwq2."""
    if bits == 4:
        return (
            b[r] & 63,
            b[16 + r] & 63,
            b[32 + r] & 63,
            b[r] >> 6 | b[16 + r] >> 6 << 2 | b[32 + r] >> 6 << 4,
        )
    high = b[16 + r] & 15 if r < 8 else b[8 + r] >> 4
    return b[r] & 63, b[r] >> 6 | high << 2


def code_at(lines, r, c, bits):
    """The code of row r and column c of a block whose lines of 64 bytes are `lines`."""
    p, at = c // 4, 4 * r + c % 4
    if bits == 4:
        return lines[64 * (p // 2) + at] >> 4 * (p % 2) & 15
    if bits == 2:
        return lines[64 * (p // 4) + at] >> 2 * (p % 4) & 3
    three, p = [lines[64 * (3 * (p // 8) + k) + at] for k in range(3)], p % 8
    return (
        three[p // 2] >> 4 * (p % 2) & 7
        if p < 6
        else sum((x >> 4 * (p % 2) + 3 & 1) << k for k, x in enumerate(three))
    )


def read_outliers(cursor):
    """The (row, value, column within the tile) of every outlier of the record of one tile."""
    counts = cursor.take("16B")
    rows = [r for level in range(max(counts)) for r in range(16) if counts[r] > level]
    return list(zip(rows, cursor.take(f"{len(rows)}e"), cursor.take(f"{len(rows)}B"), strict=True))


def decode(path, name="w.weight", matrix=0):
    """(rows, columns, weights as float32 values, row after row) of a matrix of the gwq tensor
    `name` of the file at `path`.
    """
    with open(path, "rb") as file:
        data = file.read()
    tensors = read_container(data)
    (columns, rows, *_), type_id, origin = tensors[name]
    bits, history, sub, scale_bytes, line_count = GWQ_TYPES[type_id]
    groups, blocks = -(-rows // 16), -(-columns // 64)
    head = -(-(16 + 32 * groups) // 64) * 64
    origin += matrix * (head + groups * blocks * (scale_bytes + 64 * line_count))
    cursor = Cursor(data, origin)
    table, row_scale = cursor.take("16b"), cursor.take(f"{16 * groups}e")
    cursor.position = origin + head
    has_outliers = name + ".outliers" in tensors
    if has_outliers:
        (length, *_), _, records = tensors[name + ".outliers"]
        starts = Cursor(
            data, tensors[name + ".outlier_offsets"][2] + 4 * matrix * (groups + 1)
        ).take(f"{groups + 1}i")
    weights = [0.0] * (rows * columns)
    for group in range(groups):
        outliers = Cursor(data, records + matrix * length + starts[group]) if has_outliers else None
        for first in range(0, blocks, 4):
            tile_blocks = min(4, blocks - first)
            scales = [cursor.take(f"{scale_bytes}B") for _ in range(tile_blocks)]
            lines = [cursor.take(f"{64 * line_count}B") for _ in range(tile_blocks)]
            for r in range(min(16, rows - 16 * group)):
                for c in range(min(64 * tile_blocks, columns - 64 * first)):
                    block, c_block = divmod(c, 64)
                    neighbour = code_at(lines[block], r - 1 if r % 8 else r + 7, c_block, bits)
                    window = (
                        code_at(lines[block], r, c_block, bits)
                        | neighbour >> (bits - history) << bits
                    )
                    scale = float(
                        row_scales_of_block(scales[block], r, bits)[c_block // sub] - 32
                    )  # a float: the sign of a zero counts
                    weights[(16 * group + r) * columns + 64 * first + c] = row_scale[
                        16 * group + r
                    ] * (scale * table[window])
            for r, value, c in read_outliers(outliers) if has_outliers else ():
                at = (16 * group + r) * columns + 64 * first + c
                weights[at] = struct.unpack("<f", struct.pack("<f", weights[at] + value))[0]
    return rows, columns, weights
