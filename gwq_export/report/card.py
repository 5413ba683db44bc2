"""A Hugging Face model card (README.md) for a file: front matter that the Hub understands, and what
was measured, nothing else.
"""

import logging
import re
from pathlib import Path

log = logging.getLogger("gwq_export")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_KEPT = ("license", "license_name", "license_link", "language")  # of the source's front matter
_CALIBRATION = {
    "gwq.source_base": "weights taken from",
    "gwq.calibration_samples": "samples",
    "gwq.calibration_ctx": "tokens each",
    "gwq.calibration_sha256": "SHA-256 of the token ids",
    "gwq.saliency": "outliers chosen by",
    "gwq.seed": "seed",
}


def card(reader, source, model, result):
    """The card's text. reader: the open file; source: its Source; model: what the user called it;
    result: of the export.
    """
    import yaml

    base, stated = base_model(source.folder, model), _stated(source)
    front = ({"base_model": base, "base_model_relation": "quantized"} if base else {}) | stated
    front |= {"pipeline_tag": "text-generation", "tags": ["gguf", "gwq", "quantized"]}
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
    name, file = reader.metadata.get("general.name", Path(reader.path).stem), Path(reader.path).name
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {_line(name)}, quantized",
        f"[{base}](https://huggingface.co/{base})" if base else _line(name),
    ]
    parts[-1] += (
        " quantized by its gradients (GWQ, [arXiv 2411.00850](https://arxiv.org/abs/2411.00850)) with gwq-export."
    )
    parts += [
        _files(reader, file, result),
        _quality(result),
        _calibration(reader, result),
        _usage(reader, file),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def base_model(folder, model):
    """The Hub id of a model: what the user gave, or that of its folder in the Hub's cache; None for
    any other folder.
    """
    if not Path(model).exists() and _HUB_ID.fullmatch(model):
        return model
    cached = re.search(
        r"models--([\w.-]+?)--([\w.-]+)/snapshots/", Path(folder).resolve().as_posix() + "/"
    )
    return f"{cached[1]}/{cached[2]}" if cached else None


def _stated(source):
    """{key: value} of _KEPT that the front matter of the source's README states, or a license from
    its config.
    """
    import yaml

    found = {}
    try:
        text = (source.folder / "README.md").read_text(encoding="utf-8")
        if front := re.match(r"---\r?\n(.*?)\r?\n---\s*(\r?\n|$)", text, re.DOTALL):
            found = yaml.safe_load(front[1])
    except (OSError, ValueError, yaml.YAMLError):
        pass  # a model without a card states nothing
    found = {k: found[k] for k in _KEPT if found.get(k)} if isinstance(found, dict) else {}
    if "license" not in found and isinstance(source.config.get("license"), str):
        found["license"] = source.config["license"]
    return found


def _line(value):
    """A text on one line that Markdown does not read as markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(str(value).split()))


def _cells(head, *rows):
    return "\n".join(
        "| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)
    )


def _files(reader, file, result):
    types = dict.fromkeys(
        t.type.name for t in reader.tensors.values() if len(t.shape) > 1 and not t.companion
    )
    return "## File\n\n" + _cells(
        (
            "file",
            "types",
            "bytes",
            "bits per weight",
            "in the decoder's linear layers",
            "FP16 outliers",
        ),
        (
            f"`{file}`",
            ", ".join(types),
            f"{result['bytes']:,}",
            f"{result['bpw']:.3f}",
            f"{result['bpw_linear']:.3f}",
            f"{result['outlier_fraction']:.3%}",
        ),
    )


def _quality(result):
    if "verify" not in result:
        return ""
    q = result["verify"]
    table = _cells(
        ("held-out text", "source", "this file"),
        ("perplexity", f"{q['ppl_against']:.4f}", f"{q['ppl']:.4f}"),
        (
            "KL divergence from the source, nats per token",
            "0",
            f"{q['kld_mean']:.5f} ± {q['kld_error']:.5f}",
        ),
        ("same top token", "100%", f"{q['top1_agreement']:.2%} ± {q['top1_error']:.2%}"),
    )
    measured = f"Measured on the finished file: {q['windows']} windows of {q['ctx']} tokens, {q['tokens']} tokens scored."
    return f"## Quality\n\n{table}\n\n{measured}"


def _calibration(reader, result):
    facts = [
        f"{what}: {reader.metadata[key]}"
        for key, what in _CALIBRATION.items()
        if key in reader.metadata
    ]
    if "calibration_loss" in result:
        facts.append(
            f"loss of the unquantized model: {result['calibration_loss']:.4f} nats per token"
        )
    return "## Calibration\n\n" + "\n".join(f"* {fact}" for fact in facts) if facts else ""


def _usage(reader, file):
    chat = (
        "has the model's chat template"
        if "tokenizer.chat_template" in reader.metadata
        else "has no chat template"
    )
    custom = any(t.type.bits for t in reader.tensors.values())
    types = (
        "Its tensor types are those of gwq-export; other GGUF readers refuse them by name"
        if custom
        else "It is an ordinary GGUF file"
    )
    return f"## Use\n\n```\ngwq-run {file} -p 'Why is the sky blue?'\ngwq-info {file} --check\n```\n\nThe file {chat}. {types}."
