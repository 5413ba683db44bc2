"""gwq-bench: tokens/s and GB/s against the memory roof, and against other files and llama.cpp."""

import argparse
from typing import Any

from gwq_export.commands.console import Parser, Progress, make_parser, thread_counts
from gwq_export.errors import GwqError


def parser() -> Parser:
    """Arguments of gwq-bench."""
    p = make_parser(
        "gwq-bench",
        "Tokens per second of a GGUF file, or GB/s of the kernels, against the memory roof.",
    )
    p.add_argument("file", nargs="?", metavar="FILE.gguf")
    p.add_argument(
        "--kernels",
        action="store_true",
        help="measure the kernels on random data instead of a file",
    )
    p.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="FILE.gguf",
        help="time this file too, in alternation, with llama.cpp "
        "and, if it has our types only, with this runtime; may be repeated",
    )
    p.add_argument(
        "-p", type=int, default=512, metavar="N", help="prompt tokens (default 512, 0: leave out)"
    )
    p.add_argument(
        "-n",
        type=int,
        default=128,
        metavar="N",
        help="generated tokens (default 128, 0: leave out)",
    )
    p.add_argument(
        "-t",
        "--threads",
        type=thread_counts,
        default=[None],
        metavar="N,N",
        help="thread counts (default: all CPUs)",
    )
    p.add_argument("-r", type=int, default=5, metavar="N", help="repetitions (default 5)")
    for name, example in (
        ("ops", "gemv,attention"),
        ("types", "gwq4,f16"),
        ("shapes", "4096x11008"),
    ):
        p.add_argument(
            f"--{name}",
            type=lambda text: text.split(","),
            metavar="A,B",
            help=f"with --kernels: these only, such as {example}",
        )
    p.add_argument("-o", choices=["md", "json", "jsonl", "csv"], default="md", help="output format")
    return p


def command(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Run gwq-bench; returns what --json prints."""
    from gwq_export.bench import cases, kernels, models, tables

    if bool(args.file) == args.kernels:
        raise GwqError("give either a GGUF file or --kernels")
    if args.r < 1:
        raise GwqError("-r: give at least 1")
    if args.kernels and args.against:
        raise GwqError("--against compares files: give FILE.gguf instead of --kernels")
    if not args.kernels and (args.ops or args.types or args.shapes):
        raise GwqError(
            "--ops, --types and --shapes choose kernels: give --kernels instead of a file"
        )
    if args.kernels:
        chosen = cases.select(args.ops, args.types, args.shapes)
        rows, roof = kernels.kernel_rows(chosen, args.threads, args.r, progress=progress)
    else:
        rows, roof = models.model_rows(
            args.file, args.p, args.n, args.threads, args.r, args.against, progress
        )
    progress.close()
    print(tables.FORMATS[args.o](rows, roof))
    return {"rows": rows, "roof": roof}
