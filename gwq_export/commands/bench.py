"""gwq-bench: tokens/s and GB/s against the memory roof, and against other files and llama.cpp."""

import argparse
from typing import Any

from gwq_export.commands.arguments import Parser, add_common, add_device, thread_counts
from gwq_export.commands.console import Progress
from gwq_export.errors import GwqError


def parser() -> Parser:
    """Arguments of gwq-bench."""
    p = Parser(
        "gwq-bench",
        "Tokens per second of a GGUF file, or GB/s of the kernels, against the memory roof.",
        [
            "gwq-bench model.gguf -p 512 -n 128 -t 1,2",
            "gwq-bench model.gguf --against model-Q4_K_M.gguf -o jsonl",
            "gwq-bench model.gguf --ops-profile -p 100 -t 1",
            "gwq-bench --kernels --ops gemv --types gwq4,f16",
        ],
        memory="use smaller -p and -n",
    )
    p.add_model("file", "FILE.gguf", required=False)
    group = p.add_argument_group("A file")
    group.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="FILE.gguf",
        help="time this file too, in alternation, with llama.cpp "
        "and, if it has our types only, with this runtime; may be repeated",
    )
    group.add_argument(
        "-p",
        type=int,
        metavar="N",
        help="prompt tokens (default 512, or the model's context if that is less; 0: leave out)",
    )
    group.add_argument(
        "-n", type=int, metavar="N", help="generated tokens (default 128, likewise; 0: leave out)"
    )
    group.add_argument(
        "--ops-profile",
        action="store_true",
        help="instead, where the time of a token goes, operation by operation: of one after -p"
        " others, -n times",
    )
    group = p.add_argument_group("Kernels")
    group.add_argument(
        "--kernels",
        action="store_true",
        help="measure the kernels on random data instead of a file",
    )
    for name, example in (
        ("ops", "gemv,attention"),
        ("types", "gwq4,f16"),
        ("shapes", "4096x11008"),
    ):
        group.add_argument(
            f"--{name}",
            type=lambda text: text.split(","),
            metavar="A,B",
            help=f"with --kernels: these only, such as {example}",
        )
    group = p.add_argument_group("The run")
    group.add_argument(
        "-t",
        "--threads",
        type=thread_counts,
        default=[None],
        metavar="N,N",
        help="thread counts (default: as many CPUs as this process may use)",
    )
    add_device(group)
    group.add_argument("-r", type=int, default=5, metavar="N", help="repetitions (default 5)")
    group.add_argument(
        "-o",
        choices=["md", "json", "jsonl", "csv"],
        default="md",
        help="output format (default md), row by row as they are measured",
    )
    add_common(group)
    return p


def command(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Run gwq-bench; returns what --json prints."""
    from gwq_export.bench import cases, kernels, models, ops_profile, tables

    if bool(args.file) == args.kernels:
        raise GwqError("give either a GGUF file or --kernels")
    if args.r < 1:
        raise GwqError("-r: give at least 1")
    if args.ops_profile and (args.kernels or args.against or len(args.threads) > 1):
        raise GwqError(
            "--ops-profile looks at one file with one thread count: leave out --kernels and"
            " --against, and give one -t"
        )
    if args.kernels and args.gpu_layers is not None:
        raise GwqError("--gpu-layers goes with a file: leave it out beside --kernels")
    if args.kernels and args.against:
        raise GwqError("--against compares files: give FILE.gguf instead of --kernels")
    if not args.kernels and (args.ops or args.types or args.shapes):
        raise GwqError(
            "--ops, --types and --shapes choose kernels: give --kernels instead of a file"
        )
    printer = tables.Printer(args.o, bool(args.against), lambda text: print(text, flush=True))

    def emit(row: dict[str, Any]) -> None:
        progress.close()
        printer.row(row)

    if args.ops_profile:
        roof: list[dict[str, Any]] = []
        rows = ops_profile.profile_rows(
            args.file,
            args.p,
            args.n,
            args.threads[0],
            args.r,
            progress,
            args.device,
            args.gpu_layers,
        )
        for row in rows:
            emit(row)
    elif args.kernels:
        chosen = cases.select(args.ops, args.types, args.shapes)
        rows, roof = kernels.kernel_rows(
            chosen, args.threads, args.r, progress=progress, emit=emit, device=args.device
        )
    else:
        rows, roof = models.model_rows(
            args.file,
            args.p,
            args.n,
            args.threads,
            args.r,
            args.against,
            progress,
            emit,
            args.device,
            args.gpu_layers,
        )
    progress.close()
    printer.end(roof)
    return {"rows": rows, "roof": roof}
