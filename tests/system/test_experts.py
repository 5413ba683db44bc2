"""Mixture of experts: three-dimensional tensors, and all that an export can be asked for."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import gwq_export
from gwq_export import GwqError
from gwq_export.calibration.statistics import MIN_EXPERT_TOKENS
from gwq_export.calibration.text import Calibration
from gwq_export.format.outliers import unpack_outliers
from gwq_export.format.types import TYPES
from gwq_export.format.writer import Writer
from gwq_export.hf.source import Source
from gwq_export.native.matrix import Matrix
from gwq_export.pipeline import sensitivity
from gwq_export.pipeline.imatrix import write_imatrix
from gwq_export.pipeline.sensitivity import OFFER
from gwq_export.quantization.loss_model import OFFERED
from gwq_export.quantization.recipe import Recipe
from gwq_export.report.facts import gather
from studies.oracle import dequantized_model, kl_divergence, logits
from tests.support.experts import whole_factors
from tests.support.models import save_tiny
from tests.support.paths import DATA

IDS = np.random.default_rng(5).integers(3, 1024, 90)


def test_damage_of_any_expert_is_found(tmp_path):
    golden, path = DATA / "golden" / "experts.gguf", tmp_path / "m.gguf"
    tensors = gwq_export.open_gguf(golden).tensors
    last = tensors["gwq3.weight"].matrices()[2]
    assert (
        last.offset + last.nbytes == tensors["gwq3.weight"].offset + tensors["gwq3.weight"].nbytes
    )
    offsets = tensors["gwq3.weight.outlier_offsets"]
    for at, new in (
        (last.offset + 3, b"\x20"),  # a table entry of 32
        # of expert 2: too many
        (
            tensors["gwq3.weight.outliers"].offset
            + 2 * tensors["gwq3.weight.outliers"].nbytes // 3,
            b"\xff",
        ),
        (offsets.offset + offsets.nbytes - 4, b"\xff"),  # the end of expert 2's records
    ):
        raw = golden.read_bytes()
        path.write_bytes(raw[:at] + new + raw[at + len(new) :])
        tensor = gwq_export.open_gguf(path).tensors["gwq3.weight"]
        with pytest.raises(GwqError, match="tensor gwq3"):
            tensor.check()
        damaged = []
        for t in tensor.matrices():
            try:
                Matrix(t.name, t.type, t.shape, t.data, t.outliers)
            except GwqError:
                damaged.append(t)
        assert len(damaged) == 1 and damaged[0].offset == last.offset


@pytest.mark.parametrize(
    "records, offsets",
    [
        ((3, 47), (2, 3)),
        ((2, 47), (2, 2)),
        ((2, 48), (2, 3)),
        ((94,), (6,)),
        ((1, 2, 47), (2, 3)),
        ((2, 47), (6,)),
        ((2, 31), (2, 3)),
    ],
)
def test_side_tables_of_experts_must_fit(tmp_path, records, offsets):
    """Five outliers in each of two matrices of two row groups and one tile: tables of 47 bytes and
    3 offsets.
    """
    for shapes in ((records, offsets), ((2, 47), (2, 3))):
        layout = [
            ("w", TYPES["gwq2"], (2, 20, 70)),
            ("w.outliers", TYPES["i8"], shapes[0]),
            ("w.outlier_offsets", TYPES["i32"], shapes[1]),
        ]
        if shapes == ((2, 47), (2, 3)):
            Writer(tmp_path / "m.gguf", {}, layout).abort()
        else:
            with pytest.raises(
                GwqError, match="side-table of tensor w does not fit its 2 x 20 x 70 weights"
            ):
                Writer(tmp_path / "m.gguf", {}, layout)


@pytest.fixture(scope="module")
def lonely(tmp_path_factory):
    """A model whose expert 0 is never chosen: of two pairs of opposite scores, two are always above
    its zero.
    """
    settings = {
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "initializer_range": 0.06,
    }
    folder = save_tiny(tmp_path_factory.mktemp("lonely"), "MixtralConfig", **settings)
    tensors = load_file(folder / "model.safetensors")
    for name, router in tensors.items():
        if name.endswith("block_sparse_moe.gate.weight"):
            router[0], router[3], router[4] = 0, -router[1], -router[2]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "options",
    [{"type": "gwq3", "outliers": 0.01}, {"type": "gwq4", "preset": "paper", "samples": 8}],
)
def test_an_expert_that_no_token_reaches(lonely, exported, options, caplog):
    path, _ = exported(lonely, **options)
    assert "2 of 10 experts met fewer than 16 calibration tokens" in caplog.text
    assert all(f"model.layers.{i}.mlp.experts.0" in caplog.text for i in range(2))
    assert "experts.1" not in caplog.text
    reader = gwq_export.open_gguf(path)
    source = Source(lonely)
    reader.check()
    names = {row.gguf: name for row, name in source.block(1).items() if row.expert == 0}
    assert len(names) == 3
    for gguf, hf in names.items():
        held = reader.tensors[f"blk.1.{gguf}"].matrices()[0]
        weight = source.tensor(hf).numpy()
        row, col, _ = unpack_outliers(*held.outliers, held.shape)
        kept = np.abs(weight[row, col])
        # outliers by magnitude
        assert np.array_equal(np.sort(kept), np.sort(np.abs(weight).reshape(-1))[-len(kept) :])
        assert ((held.dequantize() - weight) ** 2).mean() < 0.05 * (weight**2).mean()
    assert (
        kl_divergence(
            logits(dequantized_model(lonely, path), IDS), gwq_export.load(path).logits(IDS)
        )
        <= 1e-3
    )


def test_a_budget_gives_the_experts_of_a_layer_one_recipe(lonely, tmp_path):
    ends = ("token_embd=q8_0", "^output.weight=q8_0")  # which would take most of the time
    result = gwq_export.export(
        lonely, tmp_path / "m.gguf", bpw=9.0, outliers=0.002, samples=1, ctx=64, tensor_type=ends
    )
    reader = gwq_export.open_gguf(tmp_path / "m.gguf")
    assert 0.98 * 9.0 < 8 * reader.nbytes / result["params"] <= 9.0
    assert reader.nbytes == result["bytes"]
    rows = {row["name"]: row for row in result["plan"]}
    assert len(reader.tensors["blk.1.ffn_up_exps.weight"].shape) == 3
    for name, row in rows.items():
        assert (row["type"], row["outliers"]) == (
            reader.tensors[name].type.name,
            reader.tensors[name].outlier_count,
        )
    assert all(row["loss"] > 0 for name, row in rows.items() if "_exps" in name)
    assert result["predicted_loss"] == pytest.approx(
        sum(row["loss"] or 0 for row in result["plan"])
    )
    assert np.isfinite(gwq_export.load(tmp_path / "m.gguf").logits(IDS[:8])).all()


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A Mixtral of widths that ggml types can hold."""
    settings = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_local_experts": 4,
    }
    return save_tiny(
        tmp_path_factory.mktemp("narrow"), "MixtralConfig", initializer_range=0.06, **settings
    )


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe-plain"])
def test_importance_of_experts(tiny, tmp_path, name):
    """In llama.cpp's shapes: a row of sums for every expert, and how many tokens it was given."""
    gguf = pytest.importorskip("gguf")
    source = Source(tiny(name))
    tokens = torch.from_numpy(np.random.default_rng(0).integers(3, 1024, (3, 40)))
    calibration = Calibration(tokens)
    write_imatrix(tmp_path / "im.gguf", source, calibration, ["text"], "cpu", lambda *_: None)
    found = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "im.gguf").tensors}
    expected = whole_factors(tiny(name), tokens)
    assert found["blk.0.attn_q.weight.counts"].tolist() == [[120]]
    for i in range(source.layers):
        for row, hf in source.block(i).items():
            if row.expert is not None:
                sums, counts = (
                    found[f"blk.{i}.{row.gguf}.{part}"] for part in ("in_sum2", "counts")
                )
                _, _, columns, seen = expected[hf]
                assert sums.shape == (4, len(columns))
                assert counts.shape == (4, 1)
                assert counts[row.expert] == seen >= MIN_EXPERT_TOKENS
                np.testing.assert_allclose(
                    sums[row.expert], columns + 1e-3 * columns.mean(), rtol=2e-3
                )


def test_importance_of_an_expert_that_no_token_reaches(lonely, tmp_path):
    gguf = pytest.importorskip("gguf")
    gwq_export.export(
        lonely, tmp_path / "m.gguf", type="f16", imatrix=tmp_path / "im.gguf", samples=1, ctx=64
    )
    found = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "im.gguf").tensors}
    counts, sums = (found[f"blk.1.ffn_down_exps.weight.{part}"] for part in ("counts", "in_sum2"))
    assert counts[0] == 0 < counts[1:].min() and counts.sum() == 2 * 64 and (sums > 0).all()
    assert (
        (np.ptp(sums, axis=1) == 0) == (counts[:, 0] < MIN_EXPERT_TOKENS)
    ).all()  # all columns alike


def test_a_report_counts_the_outliers_of_every_expert(narrow, tmp_path):
    """Together with --verify, which compares whole tensors."""
    result = gwq_export.export(
        narrow,
        tmp_path / "m.gguf",
        type="gwq3",
        outliers=0.01,
        samples=1,
        ctx=64,
        verify=True,
        report=tmp_path / "r.html",
    )
    reader = gwq_export.open_gguf(tmp_path / "m.gguf")
    tensor = reader.tensors["blk.1.ffn_up_exps.weight"]
    found = {t["name"]: t for t in gather(reader)["tensors"]}[tensor.name]
    places = [unpack_outliers(*m.outliers, m.shape) for m in tensor.matrices()]
    rows = np.concatenate([row + 96 * j for j, (row, *_) in enumerate(places)])
    assert found["rows"] == np.bincount(rows // 12, minlength=32).tolist()
    assert sum(found["rows"]) == found["outliers"] == 4 * 61
    assert (
        found["columns"]
        == np.bincount(
            np.concatenate([column // 2 for _, column, _ in places]), minlength=32
        ).tolist()
    )
    assert "blk.1.ffn_up_exps.weight" in (tmp_path / "r.html").read_text()
    assert "4 × 96 × 64" in (tmp_path / "r.html").read_text()
    errors = {t["name"]: t for t in result["verify"]["tensors"]}
    assert 0 < errors[tensor.name]["weight_error"] < 0.5 and result["verify"]["kld_mean"] < 0.2


def test_sensitivities_of_experts(narrow, tmp_path):
    found = gwq_export.export(
        narrow,
        None,
        report_only=True,
        report=tmp_path / "r.html",
        outliers=0.0,
        samples=1,
        ctx=64,
        exclude="token_embd|^output",
    )
    rows = {row["name"]: row for row in found["sensitivities"]}
    assert len(rows) == 2 * 7 and rows["blk.0.ffn_gate_exps.weight"]["shape"] == [4, 96, 64]
    for row in rows.values():
        losses = [c["loss"] for c in row["choices"] if c["type"] in OFFERED]
        assert losses == sorted(losses, reverse=True) and losses[-1] > 0
        assert len(losses) == len(OFFERED) < len(row["choices"])  # and what narrow matrices get
    assert "blk.0.ffn_gate_exps.weight" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    "options", [{"stock": "q4_0"}, {"type": "q4_0"}, {"type": "bridge", "outliers": 0.05}]
)
def test_experts_in_stock_types(narrow, exported, options):
    """The runtime computes what transformers does; deltas are those of the matrix they stand
    behind.
    """
    path, _ = exported(narrow, samples=2, ctx=64, **options)
    reader = gwq_export.open_gguf(path)
    reader.check()
    experts = [t for t in reader.tensors.values() if len(t.shape) == 3 and not t.companion]
    assert len(experts) == 6 and {t.type.name for t in experts} == {"q4_0"}
    assert [t.outlier_count for t in experts] == [
        4 * round(options.get("outliers", 0) * 96 * 64)
    ] * 6
    expected = logits(dequantized_model(narrow, path), IDS)
    assert kl_divergence(expected, gwq_export.load(path).logits(IDS)) <= 1e-3
    if "outliers" in options:
        base = gwq_export.open_gguf(path, base=True)
        for t in experts:
            assert (
                np.count_nonzero(t.dequantize() != base.tensors[t.name].dequantize(), axis=(1, 2))
                > 250
            ).all()  # of each
        full, without = (
            kl_divergence(expected, gwq_export.load(path, base=b).logits(IDS))
            for b in (False, True)
        )
        assert full < 0.2 * without


@pytest.mark.parametrize(
    "change, words",
    [
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, but there are 6 experts"),
        ({"mlp_only_layers": [1]}, "mlp_only_layers"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ({"num_local_experts": 7}, "experts.6.gate_proj.weight is missing"),
        ({"num_local_experts": None}, "num_local_experts is None"),
        ({"moe_intermediate_size": 32}, "would fit the config"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(tiny, tmp_path, change, words):
    for file in tiny("qwen3moe").iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(GwqError, match=words):
        gwq_export.export(tmp_path, tmp_path / "m.gguf", type="f16")


def test_choices_of_an_entry_are_those_of_all_its_matrices():
    rows = [
        np.array(r, OFFER)
        for r in ([("gwq3", 0.0, 100, 1.0), ("gwq4", 0.0, 120, 0.5)], [("gwq4", 0.0, 120, 0.25)])
    ]
    (choice,) = sensitivity._together(SimpleNamespace(recipe=Recipe(TYPES["gwq2"])), rows)
    assert (choice.recipe.type.name, choice.nbytes, choice.loss) == ("gwq4", 120, 0.75)
