"""gwq-eval: perplexity, KL divergence, zero-shot tasks."""

import argparse
from typing import Any

from gwq_export.commands.arguments import Parser, add_base, add_common, add_device, add_threads
from gwq_export.commands.console import Progress, say_where
from gwq_export.errors import GwqError
from gwq_export.files import read_text


def parser() -> Parser:
    """Arguments of gwq-eval."""
    p = Parser(
        "gwq-eval",
        "Perplexity of a text, zero-shot tasks, and how far both are from a reference model.",
        [
            "gwq-eval model.gguf --text wiki.test.raw",
            "gwq-eval model.gguf --text wiki.test.raw --against HF_FOLDER",
            "gwq-eval model-Q4_K_M.gguf --task piqa.jsonl --limit 500 --against model-f16.gguf",
        ],
        memory="use a smaller --ctx",
    )
    p.add_model(
        "file",
        "FILE.gguf",
        help="a file of gwq-export, or any other GGUF file of a supported architecture",
    )
    group = p.add_argument_group("What is measured")
    group.add_argument(
        "-f", "--text", metavar="FILE", help="perplexity of a UTF-8 text; - reads standard input"
    )
    group.add_argument(
        "--protocol",
        metavar="NAME",
        help="llama.cpp (default): second half of every window scored; "
        "window: all of it, like papers do",
    )
    group.add_argument(
        "-c",
        "--ctx",
        type=int,
        metavar="N",
        help="tokens per window (default: the protocol's, 512 or 2048)",
    )
    group.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="NAME|FILE.jsonl",
        help="zero-shot task (repeat it for several)",
    )
    group.add_argument(
        "--limit", type=int, metavar="N", help="the first N items of every task (default: all)"
    )
    group.add_argument(
        "--against",
        metavar="HF_FOLDER|FILE.gguf",
        help="reference model: KL divergence, top-1 agreement, same answers",
    )
    group = p.add_argument_group("The run")
    add_threads(group)
    add_device(group)
    add_base(group)
    add_common(group)
    return p


def command(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Run gwq-eval; returns what --json prints."""
    from gwq_export.evaluation import perplexity, predictors, reference, tasks

    if args.text is None and not args.task:
        raise GwqError("give --text FILE for perplexity, --task NAME for a task, or both")
    for flag, value, needs in [
        ("--protocol", args.protocol, "--text"),
        ("--ctx", args.ctx, "--text"),
        ("--limit", args.limit, "--task"),
    ]:
        if value is not None and getattr(args, needs[2:]) in (None, []):
            raise GwqError(f"{flag} goes with {needs}: give that too, or leave {flag} out")
    text = None if args.text is None else read_text(args.text, "--text")
    items = [
        (p.stem, tasks.parse(read_text(p, "--task"), p.stem, args.limit))
        for p in map(tasks.find, args.task)
    ]
    model = predictors.load(args.file, args.threads, args.base, args.device, args.gpu_layers)
    say_where(model)
    against = args.against and reference.reference_logits(args.against, model, args.threads)
    result: dict[str, Any] = {"bytes": model.weights.reader.nbytes}
    if text is not None:
        result |= perplexity.evaluate(
            model, text, args.ctx, against, progress, args.protocol or "llama.cpp"
        )
        progress.close()
        _print_text(result)
    for name, questions in items:
        scores = tasks.run(model, questions, name, against, progress)
        result.setdefault("tasks", []).append(scores)
        progress.close()
        _print_task(scores)
    return result


def _print_text(r: dict[str, Any]) -> None:
    print(
        f"perplexity {r['ppl']:.4f} ± {r['ppl_error']:.4f} "
        f"({r['tokens']} tokens, windows of {r['ctx']}, protocol {r['protocol']})"
    )
    if "kld_mean" in r:
        print(
            f"  {r['ppl_ratio']:.4f} ± {r['ppl_ratio_error']:.4f} "
            f"times the reference's {r['ppl_against']:.4f}"
        )
        print(
            f"  KL divergence {r['kld_mean']:.6f} ± {r['kld_error']:.6f}, "
            f"median {r['kld_median']:.6f}, 99 % {r['kld_p99']:.4f}"
        )
        print(f"  same top token {r['top1_agreement']:.2%} ± {r['top1_error']:.2%}")


def _print_task(r: dict[str, Any]) -> None:
    norm = ""
    if "acc_norm" in r:
        norm = f", by length {r['acc_norm']:.2%} ± {r['acc_norm_error']:.2%}"
    print(f"{r['task']}: accuracy {r['acc']:.2%} ± {r['acc_error']:.2%}{norm} ({r['n']} items)")
    if "agreement" in r:
        print(
            f"  the reference {r['acc_against']:.2%}; "
            f"same answer as it {r['agreement']:.2%} ± {r['agreement_error']:.2%}"
        )
