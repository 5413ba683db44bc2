"""What users steer by: --exclude, --report-only, and the commands that carry them."""

import json

import gwq_export
from gwq_export.quantization.loss_model import OFFERED
from tests.support.cli import assert_one_line, call
from tests.support.paths import REFERENCE

SMALL = {"samples": 1, "ctx": 64}


def types(path):
    return {
        t.name: t.type.name
        for t in gwq_export.open_gguf(path).tensors.values()
        if not t.companion and len(t.shape) > 1
    }


def test_exclude_keeps_matrices_at_16_bits(tiny, exported):
    """Beside --tensor-type, which it outranks, and under a budget, which then counts them as they
    are.
    """
    model = tiny("llama")
    plain = types(exported(model, type="gwq4", **SMALL)[0])
    assert set(plain.values()) == {"gwq4", "q8_0"}
    path, _ = exported(
        model, type="gwq4", exclude=["attn_v", "token_embd"], tensor_type=["attn=gwq3"], **SMALL
    )
    expected = plain | {n: "gwq3" for n in plain if "attn" in n}
    expected |= {n: "f16" for n in plain if "attn_v" in n or "token" in n}
    assert types(path) == expected
    path, result = exported(model, bpw=8, exclude="blk.0.", outliers=0.002, **SMALL)
    chosen = types(path)
    assert {t for n, t in chosen.items() if n.startswith("blk.0.")} == {"f16"}
    assert 0.995 * 8 < result["bpw"] <= 8
    assert len(set(chosen.values())) > 2


def test_sensitivities(tmp_path):
    """More bits lose less; fixed matrices have one choice; JSON holds what the call returns."""
    options = {"report_only": True, "exclude": "blk.1", "outliers": 0.0025} | SMALL
    found = gwq_export.export(REFERENCE, None, report=tmp_path / "s.json", **options)
    assert json.loads((tmp_path / "s.json").read_text()) == found
    assert [p.name for p in tmp_path.iterdir()] == ["s.json"]
    rows = {row["name"]: row for row in found["sensitivities"]}
    assert len(rows) == 3 * 7 + 1 and "blk.1.ffn_up.weight" not in rows
    for name, row in rows.items():
        loss = {c["type"]: c["loss"] for c in row["choices"]}
        assert list(loss) == [*OFFERED], name
        assert row["shape"][1] in (256, 768), name
        falling = [loss[type] for type in OFFERED]
        assert falling == sorted(falling, reverse=True) and falling[-1] >= 0
        assert [c["bytes"] for c in row["choices"]] == sorted(c["bytes"] for c in row["choices"])
    assert found["calibration_ppl"] > 1 and found["params"] == 5245184


def test_commands(tmp_path, capsys):
    """gwq-export and gwq-info with the same options by their flags."""
    out = tmp_path / "m.gguf"
    small = ["--samples", 1, "--ctx", 64]
    flags = [
        "--verify",
        "--exclude",
        "attn_k",
        "--report",
        tmp_path / "r.html",
        "--card",
        tmp_path / "c.md",
        "--json",
    ]
    status, stdout, err = call(capsys, "export", REFERENCE, "--out", out, *small, *flags)
    result = json.loads(stdout.splitlines()[-1])
    assert status == 0
    assert result["verify"]["kld_mean"] < 0.1
    assert "calibration's own text, held out" in err
    assert "output error" in err
    assert types(out)["blk.0.attn_k.weight"] == "f16"
    assert (tmp_path / "r.html").exists()
    assert (tmp_path / "c.md").exists()
    status, stdout, err = call(
        capsys, "export", REFERENCE, "--report-only", *small, "--outliers", 0, "--json"
    )
    assert status == 0
    assert json.loads(stdout.splitlines()[-1])["sensitivities"]
    assert "blk.0.ffn_up.weight" in err
    folder = tmp_path / "hf"
    status, stdout, _ = call(
        capsys,
        "info",
        out,
        "--report",
        tmp_path / "i.html",
        "--to-safetensors",
        folder,
        "--dtype",
        "float16",
        "--json",
    )
    assert status == 0
    assert json.loads(stdout.splitlines()[-1])["to_safetensors"]["folder"] == str(folder)
    assert (folder / "model.safetensors").stat().st_size < 11e6
    assert "Where outliers are" in (tmp_path / "i.html").read_text()
    status, stdout, err = call(
        capsys, "export", REFERENCE, "--out", out, *small, "--max-kld", "1e-9", "--json"
    )
    assert status == 2
    assert json.loads(stdout.splitlines()[-1])["verify"]["kld_mean"] > 1e-9  # measured all the same
    assert "m.gguf is kept, but its KL divergence" in err.splitlines()[-1]
    for name, args, words in [
        (
            "export",
            [REFERENCE, "--out", out, "--exclude", "nothing"],
            "--exclude nothing: no matrix has such a name",
        ),
        ("export", [REFERENCE, "--out", out, "--exclude", "("], "no regular expression"),
        ("info", [out, "--to-safetensors", folder], "not an empty folder"),
        ("info", [out, "--report", tmp_path / "none" / "x.html"], "--report"),
        ("info", [out, "--config-from", folder], "--config-from goes with --to-safetensors"),
    ]:
        status, _, err = call(capsys, name, *args)
        lines = [line for line in err.splitlines() if "error:" in line]
        assert_one_line(name, status, "\n".join(lines), words)
