"""studies/byte_order: its kernels read the layouts it names, its search finds the best codes."""

import itertools
import shutil

import numpy as np
import pytest

from studies import byte_order, byte_order_counts, byte_order_lab

KERNELS = [layout.kernel for layout in byte_order.LAYOUTS if layout.kernel]
needs_avx2 = pytest.mark.skipif(
    not shutil.which("gcc") or not byte_order_counts.has_avx2(), reason="needs gcc and AVX2"
)


def bits_of(lines):
    """(units, lines, 16 rows, 4 bytes, 8 bits) of lines (units, lines, 64)."""
    return np.unpackbits(lines, axis=-1, bitorder="little").reshape(*lines.shape[:2], 16, 4, 8)


def codes2(lines):
    """Codes (units, 16 rows, 4 bytes, 4) of lines of 2 bits."""
    bits = bits_of(lines)[:, 0].astype(int)
    return bits[..., 0::2] | bits[..., 1::2] << 1


def codes3(lines):
    """Codes (units, 16 rows, 4 bytes, 8) of lines of 3 bits, as docs/format.md has them."""
    b = bits_of(lines).astype(int)
    whole = [b[:, k, ..., n : n + 3] @ [1, 2, 4] for k in range(3) for n in (0, 4)]
    spread = [b[:, 0, ..., n] | b[:, 1, ..., n] << 1 | b[:, 2, ..., n] << 2 for n in (3, 7)]
    return np.stack([*whole, *spread], -1)


def row_before(codes, ring):
    """Codes of the row before, in rings of so many rows."""
    rings = codes.reshape(len(codes), -1, ring, *codes.shape[2:])
    return np.roll(rings, 1, 2).reshape(codes.shape)


def entries(name, lines, table):
    """What every code of a layout stands for: (units, 16 rows, 4 bytes, codes)."""
    if name.endswith("2"):
        c = codes2(lines)
        if name == "pair2":
            nibble = c[..., 0::2] | c[..., 1::2] << 2
            return np.stack([table[p % 2, nibble[..., p // 2]] for p in range(4)], -1)
        after = np.roll(c, -1, -1)
        if name == "lane2":
            after[..., 3] = np.roll(c[..., 0].reshape(len(c), 4, 4, 4), -1, 2).reshape(c.shape[:-1])
        if name == "word2":
            after = np.roll(c.reshape(*c.shape[:2], 16), -1, -1).reshape(c.shape)
        if name == "row2":
            after = row_before(c, 8)
        return table[0, c if name == "none2" else c | after << 2]
    if name == "stream3":
        ring = bits_of(lines).astype(int).transpose(0, 2, 3, 1, 4).reshape(-1, 16, 4, 24)
        window = [np.roll(ring, -3 * p, -1)[..., :4] @ [1, 2, 4, 8] for p in range(8)]
        return table[0, np.stack(window, -1)]
    c = codes3(lines)
    before = np.roll(c, 2, -1)
    if name == "lane3":
        before[..., :2] = row_before(c, 4)[..., 6:]
    if name == "row3":
        before = row_before(c, 8)
    return table[0, c if name == "none3" else c | before >> 2 << 3]


def matrix(kernel, values):
    """(rows, 64) of a block from its entries."""
    units, rows, _, count = values.shape
    if kernel.endswith("_columns"):
        return values.transpose(1, 0, 3, 2).reshape(rows, 64)
    split = (count // 4, 4) if kernel.startswith("stream") else (4, count // 4)
    order = (4, 1, 0, 3, 2) if kernel.startswith("stream") else (3, 1, 0, 4, 2)
    return values.reshape(units, rows, 4, *split).transpose(order).reshape(4 * rows, 64)


def scales(data):
    """(16 rows, 2) of 24 bytes."""
    high = np.concatenate([data[16:] & 15, data[16:] >> 4])
    both = [data[:16] & 63, data[:16] >> 6 | high << 2]
    return np.stack(both, 1).astype(int) - 32


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return byte_order_counts.Kernels(tmp_path_factory.mktemp("kernels"))


@needs_avx2
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_read_their_layout(kernels, kernel):
    rng = np.random.default_rng(0)
    layout = kernel.split("_")[0]
    bits, groups, blocks = int(layout[-1]), byte_order_counts.groups(kernel), 3
    data = rng.integers(0, 256, (blocks, (24 + 128 * bits) * groups), np.uint8)
    table = np.tile(rng.integers(0, 64, (2, 16), np.uint8), 4)
    q = rng.integers(-60, 61, (blocks, 64), np.int8)
    y = np.zeros(16 * groups, np.float32)
    dx = np.array([1, 2, 3], np.float32)
    kernels.call(kernel, table, data, q, dx, np.zeros(8 * blocks, np.int16), y)
    expected = np.zeros(16 * groups)
    for block, x, factor in zip(data, q.astype(int), dx, strict=True):
        lines = block[24 * groups :].reshape(-1, 1 if bits == 2 else 3, 64)
        weights = matrix(kernel, entries(layout, lines, table[:, :16].astype(int)))
        s = np.concatenate([scales(part) for part in block[: 24 * groups].reshape(-1, 24)])
        expected += factor * ((weights * x).reshape(-1, 2, 32).sum(2) * s).sum(1)
    assert np.allclose(y, 256 * expected, rtol=1e-5, atol=256)


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    return byte_order_lab.library(tmp_path_factory.mktemp("search"))


@needs_avx2
@pytest.mark.parametrize("shape", [(4, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("feedback", [False, True])
def test_the_search_finds_a_good_ring(search, shape, feedback):
    """The best of all 256 codes; nearly, where errors move the targets of what follows."""
    rng = np.random.default_rng(1)
    rows, columns = shape
    coding = byte_order_lab.Coding(2, rows, columns, 2)
    table = rng.standard_normal(16).astype(np.float32)
    target = rng.standard_normal((columns, rows, 8)).astype(np.float32)
    gain = np.triu(rng.standard_normal((columns, columns)) / 2, 1).astype(np.float32)
    ones = np.ones((rows, 8), np.float32)
    _, index, value, _ = byte_order_lab.run(
        search, coding, table, target.copy(), ones, gain=gain if feedback else None
    )
    ring = index.reshape(4, 8)  # columns, then their rows: the order of the ring
    assert (ring >> 2 == np.roll(ring & 3, 1, 0)).all()
    assert np.array_equal(value, table[index])

    def cost(values):  # (columns, rows, 8) -> (8,)
        moved, total = target.copy(), 0
        for c in range(columns):
            error = values[c] - moved[c]
            total = total + (error**2).sum(0)
            if feedback:
                moved += gain[c][:, None, None] * error
        return total

    codes = np.array(list(itertools.product(range(4), repeat=4)))
    windows = codes | np.roll(codes, 1, 1) << 2
    every = [
        cost(np.broadcast_to(table[w].reshape(columns, rows, 1), target.shape)) for w in windows
    ]
    least, found = np.min(every, 0), cost(value)
    if feedback and columns > 1:
        assert found.sum() < 1.2 * least.sum()
    else:
        assert np.allclose(found, least, rtol=1e-4)


@needs_avx2
def test_a_longer_ring_stores_more(search):
    """Gaussian weights with the product's own table: 8 rows above 4, and both above none."""
    weight = np.random.default_rng(2).standard_normal((128, 64)).astype(np.float32)
    table = np.array(byte_order.TABLES["trellis"]["gwq2"], np.float32) / 13

    def decibels(coding, table):
        target, _, value = byte_order_lab.gaussian(search, coding, table, weight)
        return byte_order.decibels([(((target - value) ** 2).sum(), (target**2).sum())])

    four = decibels(byte_order_lab.Coding(2, 4, 1, 2), table)
    eight = decibels(byte_order_lab.Coding(2, 8, 1, 2), table)
    none = decibels(byte_order_lab.Coding(2, 1, 1), np.array([-1.51, -0.45, 0.45, 1.51]))
    assert 9.1 < none < 9.5 < four < eight - 0.2 < 10.1


@needs_avx2
def test_tables_are_fitted_to_the_weights(search):
    rng = np.random.default_rng(3)
    coding = byte_order_lab.Coding(2, 1, 2, index=byte_order_lab.pairs())
    weights = [rng.standard_normal((8, 64)).astype(np.float32) for _ in range(2)]
    start = rng.standard_normal(coding.entries)
    fitted = byte_order_lab.fit_real(search, coding, start, weights)
    assert np.array_equal(fitted, np.clip(np.rint(fitted), -32, 31))

    def error(table):
        coded = [byte_order_lab.encode(search, coding, table, w) for w in weights]
        return sum(byte_order_lab.loss(coding, c)[0] for c in coded)

    assert error(fitted) < 0.9 * error(start / np.abs(start).max() * 31)


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
def test_every_kernel_is_counted(tmp_path):
    found = byte_order_counts.instructions("avx2", byte_order_counts.assembly("avx2", tmp_path))
    assert sorted(found) == sorted(KERNELS)
    # 32 products, as many additions, 32 look-ups and 8 loads of codes, at least
    assert all(104 < count < 1000 for count in found.values())
    assert found["word2_columns"] < found["byte2_columns"] < found["row2_columns"]
    assert found["stream3_columns"] < found["byte3_columns"] < found["row3_columns"]


@needs_avx2
def test_quality_is_told_beside_the_format(capsys, monkeypatch):
    chosen = [x for x in byte_order.LAYOUTS if x.kernel in ("row2_columns", "word2_columns")]
    monkeypatch.setattr(byte_order, "LAYOUTS", chosen)
    table = np.array(byte_order.TABLES["trellis"]["gwq2"], np.float32)
    monkeypatch.setattr(byte_order, "tables_of", lambda *_: (table / 13, table))
    byte_order.main(["--no-instructions", "--rows", "32", "--samples", "2"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| 2 |")]
    assert [cells[1] for cells in rows] == [layout.name for layout in chosen]
    (*_, weights, outputs, searched, _, own, _), (*_, other, _) = rows
    assert 8 < float(weights) < 14
    assert float(searched) < float(outputs)  # a second pass over the scales of a ring
    assert own == "+0.00 ± 0.00"
    assert float(other.split()[0]) > 0
