"""What users steer by: --exclude, --report-only, --card, and the commands that carry them."""

import json
import logging

import pytest
import yaml

import gwq_export
from gwq_export.report.card import base_model
from tests.support.cli import assert_one_line, call
from tests.support.models import save_tiny
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
    expected = {
        n: "f16" if "attn_v" in n or "token" in n else "gwq3" if "attn" in n else plain[n]
        for n in plain
    }
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
        assert list(loss) == ["gwq2", "gwq3", "gwq4", "q8_0", "f16"], name
        assert row["shape"][1] in (256, 768), name
        assert loss["gwq2"] > loss["gwq3"] > loss["gwq4"] > loss["q8_0"] >= loss["f16"] >= 0
        assert [c["bytes"] for c in row["choices"]] == sorted(c["bytes"] for c in row["choices"])
    assert found["calibration_ppl"] > 1 and found["params"] == 5245184


def front_matter(path):
    text = path.read_text()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_card(tiny, tmp_path):
    """Front matter that the Hub reads; figures of this export and no others."""
    folder = tmp_path / "models--some-org--Some.Model" / "snapshots" / "0123"
    save_tiny(folder, "LlamaConfig")
    (folder / "README.md").write_text(
        '---\nlicense: other\nlicense_name: "a: b"\nlanguage:\n- en\n'
        "base_model: org/parent\n---\n# x\n"
    )
    result = gwq_export.export(
        folder, tmp_path / "m.gguf", type="gwq3", verify=True, card=tmp_path / "README.md", **SMALL
    )
    front, body = front_matter(tmp_path / "README.md")
    assert front == {
        "base_model": "some-org/Some.Model",
        "base_model_relation": "quantized",
        "license": "other",
        "license_name": "a: b",
        "language": ["en"],
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "gwq", "quantized"],
    }
    verify = result["verify"]
    for shown in (
        f"{result['bytes']:,}",
        f"{result['bpw']:.3f}",
        f"{verify['kld_mean']:.5f}",
        f"{verify['ppl']:.4f}",
        "samples: 1",
        "m.gguf",
    ):
        assert shown in body, shown
    assert "gwq3" in body and "gwq4" not in body


def test_card_of_a_folder_states_only_what_is_known(tiny, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="gwq_export"):
        gwq_export.export(tiny("qwen2"), tmp_path / "m.gguf", type="f16", card=tmp_path / "c.md")
    front, body = front_matter(tmp_path / "c.md")
    assert front == {"pipeline_tag": "text-generation", "tags": ["gguf", "gwq", "quantized"]}
    assert "| f16 |" in body
    assert "KL divergence" not in body
    assert "Calibration" not in body
    assert "no base_model" in caplog.text
    assert "no license" in caplog.text


def test_card_names_stock_types(tiny, tmp_path):
    gwq_export.export(
        tiny("qwen2"),
        tmp_path / "m.gguf",
        type="q4_0",
        tensor_type="ffn_down=f16",
        card=tmp_path / "c.md",
    )
    assert "q8_0, q4_0, f16" in front_matter(tmp_path / "c.md")[1]


@pytest.mark.parametrize(
    "readme, config, expected",
    [
        ("---\nlicense: mit\n---\n", None, "mit"),
        ("no front matter", "apache-2.0", "apache-2.0"),
        (None, "mit", "mit"),
        ("---\nlicense: [unclosed\n---\n", None, None),
        ("---\n- a list\n---\n", None, None),
        ("---\nlicense: mit", None, None),
    ],
)
def test_license_is_the_sources(tmp_path, readme, config, expected):
    from types import SimpleNamespace

    from gwq_export.report.card import _stated

    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert (
        _stated(SimpleNamespace(folder=tmp_path, config={"license": config})).get("license")
        == expected
    )


@pytest.mark.parametrize(
    "folder, model, expected",
    [
        ("/c/models--a--b.c/snapshots/1", "a/b.c", "a/b.c"),
        ("/c/models--a--b--c/snapshots/1", "/c/models--a--b--c/snapshots/1", "a/b--c"),
        ("/models/llama", "/models/llama", None),
        (REFERENCE, str(REFERENCE), None),
    ],
)
def test_base_model_is_a_hub_id(folder, model, expected):
    assert base_model(folder, model) == expected


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
    assert "held-out text" in err
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
