"""gwq-info: what is in a file."""

import argparse
import math
from typing import TYPE_CHECKING, Any

from gwq_export.commands.arguments import Parser, add_base, add_common
from gwq_export.commands.console import Progress
from gwq_export.errors import GwqError
from gwq_export.machine import size

if TYPE_CHECKING:
    from gwq_export.format.reader import Reader


LARGE = 1 << 28  # bytes from which on a check takes long enough to show its progress


def parser() -> Parser:
    """Arguments of gwq-info."""
    p = Parser(
        "gwq-info",
        "What is in a GGUF file.",
        [
            "gwq-info model.gguf --check",
            "gwq-info model.gguf --report model.html",
            "gwq-info model.gguf --to-safetensors folder --dtype bfloat16",
            "gwq-info --devices model.gguf",
        ],
    )
    p.add_model("file", "FILE.gguf", spared_by="devices")
    group = p.add_argument_group("What to do with it")
    group.add_argument(
        "--check", action="store_true", help="validate every byte that can be validated"
    )
    add_base(group)
    group.add_argument("--report", metavar="FILE.html", help="a page on sizes and outliers")
    group.add_argument(
        "--to-safetensors",
        metavar="DIR",
        help="write the dequantized model as a Hugging Face folder",
    )
    group.add_argument(
        "--dtype",
        metavar="NAME",
        help="for --to-safetensors: float32 (default), float16, bfloat16",
    )
    group.add_argument(
        "--config-from",
        metavar="HF_FOLDER",
        help="for --to-safetensors: copy config and tokenizer from the source model",
    )
    group.add_argument(
        "--devices",
        action="store_true",
        help="instead, what this machine can run models on, and which layers of the file, if one is"
        " given, would run on a GPU",
    )
    add_common(p.add_argument_group("Output"))
    return p


def _print_devices(path: str | None, base: bool) -> dict[str, Any]:
    """Print what --device may name; returns what --json prints.

    path: of a file, of which it says which layers would run on the devices. base: as for Reader.
    """
    from gwq_export.format.reader import Reader
    from gwq_export.runtime.devices import devices, placements

    found = devices()
    cpu = found["cpu"]
    print(f"cpu     {cpu['name']}, {cpu['threads']} threads, {cpu['isa']}")
    for i, d in enumerate(found["cuda"]):
        able = "" if d["usable"] else ", too old to be used"
        print(
            f"cuda:{i}  {d['name']}, compute capability {d['capability']}, {size(d['bytes'])}{able}"
        )
    if found["why_no_cuda"]:
        print(f"no CUDA device: {found['why_no_cuda']}")
    if path is not None:
        found["placements"] = placements(Reader(path, base=base), found)
        for name, placement in found["placements"].items():
            print(f"{name}: {placement}")
    return found


def command(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Run gwq-info; returns what --json prints."""
    from gwq_export.files import check_output, save
    from gwq_export.format.foreign import check_foreign, foreign_type
    from gwq_export.format.header import GGML_TYPES
    from gwq_export.format.reader import Reader
    from gwq_export.runtime.guard import FileGuard, check_tokenizer

    if args.devices:
        return _print_devices(args.file, args.base)
    for flag, value in (("--dtype", args.dtype), ("--config-from", args.config_from)):
        if value is not None and args.to_safetensors is None:
            raise GwqError(f"{flag} goes with --to-safetensors: give that too, or leave {flag} out")
    if args.report:
        check_output(args.report, "--report")
    if args.to_safetensors:
        from gwq_export.hf.restore import check_folder

        check_folder(args.to_safetensors)
    reads = args.check or args.to_safetensors is not None
    reader = Reader(args.file, foreign_type if reads else GGML_TYPES.get, args.base)
    guard = FileGuard(part.file for part in reader.parts) if reads or args.report else None
    if args.check:
        if sum(t.nbytes for t in reader.tensors.values()) > LARGE:
            reader.check(progress)
            progress.close()
        else:
            reader.check()
        check_foreign(reader)
        check_tokenizer(reader)
    result = _facts(reader)
    if args.check:
        result["check"] = "ok"
    _print_facts(args.file, result)
    if args.report:
        from gwq_export.report.facts import gather
        from gwq_export.report.page import page

        save(args.report, page(gather(reader)), "--report")
    if args.to_safetensors:
        from gwq_export.hf.restore import restore

        result["to_safetensors"] = restore(
            reader, args.to_safetensors, args.dtype or "float32", args.config_from, progress
        )
        progress.close()
        print(f"  {args.to_safetensors}: {size(result['to_safetensors']['bytes'])}")
    if guard:
        guard.check()
    return result


def _facts(reader: "Reader") -> dict[str, Any]:
    """What --json prints of an open file."""
    from gwq_export.runtime.kv_cache import text_bytes

    tensors = [
        {
            "name": t.name,
            "type": t.type.name,
            "shape": list(t.shape),
            "bytes": t.nbytes,
            "outliers": t.outlier_count,
        }
        for t in reader.tensors.values()
    ]
    params = sum(math.prod(t.shape) for t in reader.tensors.values() if not t.companion)
    tensor_bytes = sum(t.nbytes for t in reader.tensors.values())
    header = reader.header_bytes
    return {
        "arch": reader.metadata.get("general.architecture"),
        "params": params,
        "bytes": reader.nbytes,
        "bpw": 8 * reader.nbytes / max(params, 1),
        "header_bytes": header,
        "tensor_bytes": tensor_bytes,
        "alignment_bytes": reader.nbytes - header - tensor_bytes,
        "gwq": {k: v for k, v in reader.metadata.items() if k.startswith("gwq.")},
        "tensors": tensors,
        **text_bytes(reader),
    }


def _print_facts(path: str, facts: dict[str, Any]) -> None:
    from gwq_export.format.types import TYPES

    tensors = facts["tensors"]
    print(
        f"{path}: {facts['arch']}, {facts['params'] / 1e6:.2f} M parameters, "
        f"{size(facts['bytes'])}, {facts['bpw']:.3f} bits per weight"
    )
    for key, value in facts["gwq"].items():
        print(f"  {key} = {value}")
    width = max((len(t["name"]) for t in tensors), default=0)
    for t in tensors:
        shape = "x".join(map(str, t["shape"]))
        kept = ""
        if t["outliers"]:
            kept = f"  {t['outliers']} outliers ({t['outliers'] / math.prod(t['shape']):.2%})"
        print(f"  {t['name']:{width}}  {t['type']:5}  {shape:>13}  {t['bytes']:>12} bytes{kept}")
    print(
        f"  header {facts['header_bytes']} + tensors {facts['tensor_bytes']} "
        f"+ alignment {facts['alignment_bytes']} = {facts['bytes']} bytes"
    )
    if facts.get("state_bytes"):
        print(
            f"  a text takes {size(facts['state_bytes'])} of states, whatever its length, and"
            f" {facts['cache_bytes']} bytes of KV cache for each token"
        )
    stock = dict.fromkeys(t["type"] for t in tensors if t["type"] not in TYPES)
    if stock:
        print(
            f"  {', '.join(stock)}: only llama.cpp computes with this; gwq-export FILE.gguf makes "
            "a file of it that gwq-run runs, gwq-eval takes it as it is"
        )
    if "check" in facts:
        print("  check: ok")
