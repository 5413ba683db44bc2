"""The model card: front matter that the Hub reads, and figures of this export alone."""

import logging

import pytest
import yaml

import gwq_export
from gwq_export.report.card import base_model
from tests.support.models import save_tiny
from tests.support.paths import REFERENCE

SMALL = {"samples": 1, "ctx": 64}


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
