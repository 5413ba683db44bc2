"""A Hugging Face model card (README.md) for a file.

It has front matter that the Hub understands, and what was measured, nothing else.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gwq_export.format.reader import Reader

log = logging.getLogger("gwq_export")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/")
_FRONT_MATTER = re.compile(r"---\r?\n(.*?)\r?\n---\s*(\r?\n|$)", re.DOTALL)
_KEPT = ("license", "license_name", "license_link", "language")  # of the source's front matter
_CALIBRATION = {
    "gwq.source_base": "weights taken from",
    "gwq.source_quantized": "weights decoded from",
    "gwq.source_lora": "with the LoRA adapter",
    "gwq.calibration_samples": "samples",
    "gwq.calibration_ctx": "tokens each",
    "gwq.calibration_sha256": "SHA-256 of the token ids",
    "gwq.saliency": "outliers chosen by",
    "gwq.seed": "seed",
}


class Folder(Protocol):
    """What a card needs of a hf.source.Source."""

    @property
    def folder(self) -> Path: ...
    @property
    def config(self) -> Mapping[str, Any]: ...


def card(reader: Reader, source: Folder, model: str, result: Mapping[str, Any]) -> str:
    """The card's text.

    reader: the open file; source: its Source; model: what the user called it; result: of the
    export. Logs a warning when the model or its license is not known.
    """
    base = base_model(source.folder, model)
    stated = _stated(source)
    if not base:
        log.warning(
            "the card names no base_model: %s is not from the Hub; add the id to the front matter",
            source.folder,
        )
    if "license" not in stated:
        log.warning(
            "the card names no license: neither README.md nor config.json of %s states one",
            source.folder,
        )
    name = _line(reader.metadata.get("general.name", Path(reader.path).stem))
    file = Path(reader.path).name
    parts = [
        f"{_front_matter(base, stated)}\n\n# {name}, quantized",
        _introduction(base, name),
        _files(reader, file, result),
        _quality(result),
        _calibration(reader, result),
        _usage(reader, file),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def base_model(folder: Path, model: str | os.PathLike[str]) -> str | None:
    """The Hub id of a model: what the user gave, or that of its folder in the Hub's cache.

    None for any other folder.
    """
    if not Path(model).exists() and _HUB_ID.fullmatch(str(model)):
        return str(model)
    cached = _CACHED.search(Path(folder).resolve().as_posix() + "/")
    return f"{cached[1]}/{cached[2]}" if cached else None


def _stated(source: Folder) -> dict[str, Any]:
    """{key: value} of _KEPT that the front matter of the source's README states.

    A license may come from its config too.
    """
    import yaml

    front: Any = {}
    try:
        text = (source.folder / "README.md").read_text(encoding="utf-8")
        if match := _FRONT_MATTER.match(text):
            front = yaml.safe_load(match[1])
    except (OSError, ValueError, yaml.YAMLError):
        pass  # a model without a card states nothing
    stated = {}
    if isinstance(front, dict):
        stated = {key: front[key] for key in _KEPT if front.get(key)}
    if "license" not in stated and isinstance(source.config.get("license"), str):
        stated["license"] = source.config["license"]
    return stated


def _line(value: object) -> str:
    """A text on one line that Markdown does not read as markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(str(value).split()))


def _table(head: Sequence[object], *rows: Sequence[object]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _front_matter(base: str | None, stated: Mapping[str, Any]) -> str:
    import yaml

    front: dict[str, Any] = {}
    if base:
        front = {"base_model": base, "base_model_relation": "quantized"}
    front |= stated
    front |= {"pipeline_tag": "text-generation", "tags": ["gguf", "gwq", "quantized"]}
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---"


def _introduction(base: str | None, name: str) -> str:
    model = f"[{base}](https://huggingface.co/{base})" if base else name
    return (
        f"{model} quantized by its gradients "
        "(GWQ, [arXiv 2411.00850](https://arxiv.org/abs/2411.00850)) with gwq-export."
    )


def _files(reader: Reader, file: str, result: Mapping[str, Any]) -> str:
    matrices = [t for t in reader.tensors.values() if len(t.shape) > 1 and not t.companion]
    types = dict.fromkeys(t.type.name for t in matrices)
    columns = {
        "file": f"`{file}`",
        "types": ", ".join(types),
        "bytes": f"{result['bytes']:,}",
        "bits per weight": f"{result['bpw']:.3f}",
        "in the decoder's linear layers": f"{result['bpw_linear']:.3f}",
        "FP16 outliers": f"{result['outlier_fraction']:.3%}",
    }
    return "## File\n\n" + _table(list(columns), list(columns.values()))


def _quality(result: Mapping[str, Any]) -> str:
    if "verify" not in result:
        return ""
    q = result["verify"]
    divergence = f"{q['kld_mean']:.5f} ± {q['kld_error']:.5f}"
    table = _table(
        ("held-out text", "source", "this file"),
        ("perplexity", f"{q['ppl_against']:.4f}", f"{q['ppl']:.4f}"),
        ("KL divergence from the source, nats per token", "0", divergence),
        ("same top token", "100%", f"{q['top1_agreement']:.2%} ± {q['top1_error']:.2%}"),
    )
    measured = (
        f"Measured on the finished file: {q['windows']} windows of {q['ctx']} tokens, "
        f"{q['tokens']} tokens scored."
    )
    return f"## Quality\n\n{table}\n\n{measured}"


def _calibration(reader: Reader, result: Mapping[str, Any]) -> str:
    facts = [
        f"{name}: {reader.metadata[key]}"
        for key, name in _CALIBRATION.items()
        if key in reader.metadata
    ]
    if "calibration_loss" in result:
        loss = result["calibration_loss"]
        facts.append(f"loss of the unquantized model: {loss:.4f} nats per token")
    if not facts:
        return ""
    return "## Calibration\n\n" + "\n".join(f"* {fact}" for fact in facts)


def _usage(reader: Reader, file: str) -> str:
    chat = "has no chat template"
    if "tokenizer.chat_template" in reader.metadata:
        chat = "has the model's chat template"
    types = "It is an ordinary GGUF file"
    if any(t.type.bits for t in reader.tensors.values()):
        types = "Its tensor types are those of gwq-export; other GGUF readers refuse them by name"
    return (
        "## Use\n\n```\n"
        f"gwq-run {file} -p 'Why is the sky blue?'\n"
        f"gwq-info {file} --check\n"
        "```\n\n"
        f"The file {chat}. {types}."
    )
