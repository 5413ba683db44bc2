"""The commands: which arguments each takes, what it calls and what it prints.

Also `python -m gwq_export.cli export|run|eval|bench|info ...`.
"""

import csv
import json
import math
import sys

from gwq_export import GwqError
from gwq_export.console import fraction, make_parser, read_text, run_command, size, thread_counts

# --- gwq-export -----------------------------------------------------------------------------------------------------


def _export_parser():
    p = make_parser("gwq-export", "Quantize a Hugging Face model by its gradients and write one GGUF file.")
    p.add_argument("model", help="model folder (config.json, *.safetensors, tokenizer.json) or hub id org/name")
    p.add_argument("--out", required=True, metavar="FILE.gguf")
    p.add_argument("--type", help="of the decoder's linear layers: gwq4 (default), gwq3, gwq2, q8_0, f16, bf16, f32")
    p.add_argument("--outliers", type=fraction, metavar="F", help="fraction kept in FP16 (default 0.0025; preset paper: 0.01)")
    p.add_argument("--saliency", help="which weights: loss (default), grad (GWQ's |gradient|), fisher, hessian, magnitude, ...")
    p.add_argument("--preset", default="default", help="default, or paper: the published recipe")
    p.add_argument("--bpw", type=float, metavar="B", help="bits per weight of the whole file: choose types and outliers under this budget")
    p.add_argument("--size", metavar="BYTES", help="likewise by size: 640MiB, 1.2GB or bytes")
    p.add_argument("--tensor-type", action="append", default=[], metavar="REGEX=TYPE", help="type of the tensors whose GGUF name matches")
    p.add_argument("--calib", metavar="FILE", help="calibration text, UTF-8 (default: a bundled one)")
    p.add_argument("--samples", type=int, metavar="N", help="calibration samples (default: 32; preset paper: 1)")
    p.add_argument("--ctx", type=int, default=512, metavar="N", help="tokens per calibration sample (default 512)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cpu", help="cpu (default) or cuda: where gradients are computed")
    p.add_argument("--revision", help="hub revision of the model")
    p.add_argument("--tokenizer-pre", metavar="NAME", help="pre-tokenizer name to write when it is not recognised")
    p.add_argument("--dry-run", action="store_true", help="calibrate, print the plan and the predicted perplexity, write nothing")
    return p


def _export(args, progress):
    from gwq_export.pipeline import export

    options = {k: v for k, v in vars(args).items() if k not in ("json", "model", "out")}
    result = export(args.model, args.out, **options, progress=progress)
    progress.close()
    for row in result.get("plan", []):
        kept, loss = (f"{row['outliers']} outliers" if row["outliers"] else ""), "" if row["loss"] is None else f"{row['loss']:.2e} nats"
        print(f"  {row['name']:28} {row['type']:5} {row['bytes']:>12} bytes  {kept:>16}  {loss}", file=sys.stderr)
    if "predicted_ppl" in result:
        print(f"  calibration text: perplexity {result['calibration_ppl']:.3f}, predicted {result['predicted_ppl']:.3f}", file=sys.stderr)
    verb = "would take" if args.dry_run else "takes"
    print(f"{result['out']} {verb} {size(result['bytes'])}: {result['params'] / 1e6:.2f} M parameters, {result['bpw']:.3f} bits per weight"
          f" ({result['bpw_linear']:.3f} in the decoder's linear layers), {result['outlier_fraction']:.3%} outliers;"
          f" {result['seconds']:.1f} s, peak memory {size(result['peak_rss_bytes'])}", file=sys.stderr)  # fmt: skip
    return result


# --- gwq-run --------------------------------------------------------------------------------------------------------


def _run_parser():
    p = make_parser("gwq-run", "Generate text from a GGUF file.")
    p.add_argument("file", metavar="FILE.gguf")
    p.add_argument("-p", "--prompt", required=True, help="the prompt; - reads it from standard input")
    p.add_argument("-n", type=int, default=128, metavar="N", help="tokens at most (default 128, -1: until the context is full)")
    p.add_argument("--temp", type=float, default=0.0, help="temperature (default 0: always the likeliest token)")
    p.add_argument("--top-k", type=int, default=40)
    p.add_argument("--top-p", type=float, default=0.95)
    p.add_argument("--min-p", type=float, default=0.0)
    p.add_argument("--seed", type=int)
    p.add_argument("--ctx", type=int, metavar="N", help="context (default: the model's)")
    p.add_argument("--raw", action="store_true", help="do not wrap the prompt in the file's chat template")
    p.add_argument("-t", "--threads", type=int, metavar="N", help="CPU threads (default: all)")
    p.add_argument("--device", default="cpu", help="cpu")
    return p


def _run(args, progress):
    from gwq_export.generate import Model, Sampling

    prompt = read_text("-", "-p") if args.prompt == "-" else args.prompt
    if not prompt:
        raise GwqError("the prompt is empty: give some text with -p")
    sampling = Sampling(args.temp, args.top_k, args.top_p, args.min_p, args.seed)
    model, stats, text = Model(args.file, args.device, args.threads, args.ctx), {}, []
    for piece in model.stream(prompt, args.n, sampling, chat=not args.raw, stats=stats):
        text.append(piece)
        print(piece, end="", flush=True)
    print()
    print(f"[prompt {stats['prompt_tokens']} tokens, {stats['prompt_tps']:.1f} t/s; generated {stats['tokens']}, "
          f"{stats['decode_tps']:.1f} t/s; stopped by {stats['stop']}]", file=sys.stderr)  # fmt: skip
    return {"text": "".join(text)} | stats


# --- gwq-eval -------------------------------------------------------------------------------------------------------


def _eval_parser():
    p = make_parser("gwq-eval", "Perplexity of a text, zero-shot tasks, and how far both are from a reference model.")
    p.add_argument("file", metavar="FILE.gguf", help="a file of gwq-export, or any other GGUF file of a supported architecture")
    p.add_argument("--text", metavar="FILE", help="perplexity of a UTF-8 text; - reads standard input")
    p.add_argument("--protocol", help="llama.cpp (default): second half of every window scored; window: all of it, like papers do")
    p.add_argument("--ctx", type=int, metavar="N", help="tokens per window (default: the protocol's, 512 or 2048)")
    p.add_argument("--task", action="append", default=[], metavar="NAME|FILE.jsonl", help="zero-shot task (repeat it for several)")
    p.add_argument("--limit", type=int, metavar="N", help="the first N items of every task (default: all)")
    p.add_argument("--against", metavar="HF_FOLDER|FILE.gguf", help="reference model: KL divergence, top-1 agreement, same answers")
    p.add_argument("-t", "--threads", type=int, metavar="N", help="CPU threads (default: all)")
    return p


def _eval(args, progress):
    from gwq_export import evaluate, predict, stock, tasks

    if args.text is None and not args.task:
        raise GwqError("give --text FILE for perplexity, --task NAME for a task, or both")
    for flag, value, needs in [("--protocol", args.protocol, "--text"), ("--ctx", args.ctx, "--text"), ("--limit", args.limit, "--task")]:
        if value is not None and getattr(args, needs[2:]) in (None, []):
            raise GwqError(f"{flag} goes with {needs}: give that too, or leave {flag} out")
    text = None if args.text is None else read_text(args.text, "--text")
    items = [(p.stem, tasks.parse(read_text(p, "--task"), p.stem, args.limit)) for p in map(tasks.find, args.task)]
    model = stock.load(args.file, args.threads)
    against = args.against and predict.reference_logits(args.against, model, args.threads)
    result = {"bytes": model.weights.reader.nbytes}
    if args.text is not None:
        result |= evaluate.evaluate(model, text, args.ctx, against, progress, args.protocol or "llama.cpp")
        progress.close()
        _print_text(result)
    for name, questions in items:
        scores = tasks.run(model, questions, name, against, progress)
        result.setdefault("tasks", []).append(scores)
        progress.close()
        _print_task(scores)
    return result


def _print_text(r):
    print(f"perplexity {r['ppl']:.4f} ± {r['ppl_error']:.4f} ({r['tokens']} tokens scored by {r['protocol']}, windows of {r['ctx']})")
    if "kld_mean" in r:
        print(f"  {r['ppl_ratio']:.4f} ± {r['ppl_ratio_error']:.4f} times the reference's {r['ppl_against']:.4f}")
        print(f"  KL divergence {r['kld_mean']:.6f} ± {r['kld_error']:.6f}, median {r['kld_median']:.6f}, 99 % {r['kld_p99']:.4f}")
        print(f"  same top token {r['top1_agreement']:.2%} ± {r['top1_error']:.2%}")


def _print_task(r):
    norm = f", by length {r['acc_norm']:.2%} ± {r['acc_norm_error']:.2%}" if "acc_norm" in r else ""
    print(f"{r['task']}: accuracy {r['acc']:.2%} ± {r['acc_error']:.2%}{norm} ({r['n']} items)")
    if "agreement" in r:
        print(f"  the reference {r['acc_against']:.2%}; same answer as it {r['agreement']:.2%} ± {r['agreement_error']:.2%}")


# --- gwq-bench ------------------------------------------------------------------------------------------------------


def _bench_parser():
    p = make_parser("gwq-bench", "Tokens per second of a GGUF file, or GB/s of the kernels, against the memory roof.")
    p.add_argument("file", nargs="?", metavar="FILE.gguf")
    p.add_argument("--kernels", action="store_true", help="measure the kernels on random matrices instead of a file")
    p.add_argument("-p", type=int, default=512, metavar="N", help="prompt tokens (default 512, 0: leave out)")
    p.add_argument("-n", type=int, default=128, metavar="N", help="generated tokens (default 128, 0: leave out)")
    p.add_argument("-t", "--threads", type=thread_counts, default=[None], metavar="N,N", help="thread counts (default: all CPUs)")
    p.add_argument("-r", type=int, default=5, metavar="N", help="repetitions (default 5)")
    p.add_argument("-o", choices=["md", "json", "jsonl", "csv"], default="md", help="output format")
    return p


def _bench(args, progress):
    from gwq_export import bench

    if bool(args.file) == args.kernels:
        raise GwqError("give either a GGUF file or --kernels")
    if args.r < 1:
        raise GwqError("-r: give at least 1")
    if args.kernels:
        rows = bench.kernel_rows(args.threads, args.r, progress=progress)
    else:
        rows = bench.model_rows(args.file, args.p, args.n, args.threads, args.r, progress)
    progress.close()
    if args.o == "md":
        print(bench.markdown(rows))
        print(f"\n{rows[0]['cpu_info']}; of roof: share of the best read rate measured in the same run (above 100 %: from the cache)")
    elif args.o == "csv":
        writer = csv.DictWriter(sys.stdout, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    elif args.o == "jsonl":
        print("\n".join(json.dumps(row) for row in rows))
    else:
        print(json.dumps(rows, indent=2))
    return {"rows": rows}


# --- gwq-info -------------------------------------------------------------------------------------------------------


def _info_parser():
    p = make_parser("gwq-info", "What is in a GGUF file.")
    p.add_argument("file", metavar="FILE.gguf")
    p.add_argument("--check", action="store_true", help="validate every byte that can be validated")
    return p


def _info(args, progress):
    from gwq_export.container import Reader

    reader = Reader(args.file)
    if args.check:
        reader.check()
    tensors = [{"name": t.name, "type": t.type.name, "shape": list(t.shape), "bytes": t.nbytes, "outliers": t.outlier_count}
               for t in reader.tensors.values()]  # fmt: skip
    main = [t for t in reader.tensors.values() if not t.companion]
    params = sum(math.prod(t.shape) for t in main)
    tensor_bytes = sum(t["bytes"] for t in tensors)
    header = min((t.offset for t in reader.tensors.values()), default=reader.nbytes)
    result = {
        "arch": reader.metadata.get("general.architecture"), "params": params, "bytes": reader.nbytes,
        "bpw": 8 * reader.nbytes / max(params, 1),
        "header_bytes": header, "tensor_bytes": tensor_bytes, "alignment_bytes": reader.nbytes - header - tensor_bytes,
        "gwq": {k: v for k, v in reader.metadata.items() if k.startswith("gwq.")}, "tensors": tensors,
    }  # fmt: skip
    if args.check:
        result["check"] = "ok"
    print(f"{args.file}: {result['arch']}, {params / 1e6:.2f} M parameters, {size(reader.nbytes)}, {result['bpw']:.3f} bits per weight")
    for key, value in result["gwq"].items():
        print(f"  {key} = {value}")
    width = max((len(t["name"]) for t in tensors), default=0)
    for t in tensors:
        kept = f"  {t['outliers']} outliers ({t['outliers'] / math.prod(t['shape']):.2%})" if t["outliers"] else ""
        print(f"  {t['name']:{width}}  {t['type']:5}  {'x'.join(map(str, t['shape'])):>13}  {t['bytes']:>12} bytes{kept}")
    print(f"  header {header} + tensors {tensor_bytes} + alignment {result['alignment_bytes']} = {reader.nbytes} bytes")
    if args.check:
        print("  check: ok")
    return result


# --- dispatch -------------------------------------------------------------------------------------------------------

COMMANDS = {
    "export": (_export_parser, _export),
    "run": (_run_parser, _run),
    "eval": (_eval_parser, _eval),
    "bench": (_bench_parser, _bench),
    "info": (_info_parser, _info),
}


def main(command, argv=None):
    """Run one command; returns the exit status."""
    return run_command(f"gwq-{command}", *COMMANDS[command], argv)


def export():
    sys.exit(main("export"))


def run():
    sys.exit(main("run"))


def evaluate():
    sys.exit(main("eval"))


def bench():
    sys.exit(main("bench"))


def info():
    sys.exit(main("info"))


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(f"usage: python -m gwq_export.cli {'|'.join(COMMANDS)} ...", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
