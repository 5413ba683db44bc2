"""gwq-bench: tokens/s and GB/s against the memory roof, and against other files and llama.cpp."""

import argparse
from typing import Any

from gwq_export.commands import bench_suite
from gwq_export.commands.arguments import Parser, add_common, add_device, lengths, thread_counts
from gwq_export.commands.console import Progress
from gwq_export.errors import GwqError

MOST_MINUTES = 24 * 60
SWEEP = "sweep"  # -t's word for those counts that the device suggests


def parser() -> Parser:
    """Arguments of gwq-bench."""
    p = Parser(
        "gwq-bench",
        "Tokens per second of a GGUF file, or GB/s of the kernels, against the memory roof.",
        [
            "gwq-bench model.gguf -p 512 -n 128 -t 1,2",
            "gwq-bench model.gguf --against model-Q4_K_M.gguf -o jsonl",
            "gwq-bench model.gguf --ops-profile -p 100 -t 1",
            "gwq-bench model.gguf --suite edge --out pi5.json",
            "gwq-bench --compare pi4.json pi5.json",
            "gwq-bench model.gguf --record model.pass",
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
        type=lengths,
        default=[None],
        metavar="N,N",
        help="prompt tokens (default 512, or the model's context if that is less; 0: leave out)",
    )
    group.add_argument(
        "-n", type=int, metavar="N", help="generated tokens (default 128, likewise; 0: leave out)"
    )
    group.add_argument(
        "--depth",
        type=lengths,
        default=[0],
        metavar="N,N",
        help="tokens in the context before the prompt and before decoding (default 0)",
    )
    group.add_argument(
        "--ops-profile",
        action="store_true",
        help="instead, where the time of a token goes, operation by operation: of one after -p"
        " others, -n times",
    )
    group = p.add_argument_group("A device")
    group.add_argument(
        "--suite",
        choices=["edge"],
        help="a fixed set: threads, start, prompts, decoding, depth, minutes without a pause;"
        " writes a JSON file and a page (docs/edge.md)",
    )
    group.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="decode without a pause for so many minutes, and tell what is left of the speed"
        " (default in --suite edge: 5)",
    )
    group.add_argument(
        "--out",
        metavar="FILE.json",
        help="of --suite and --minutes; the page gets the same name with .html (default: named by"
        " the model and the time)",
    )
    group.add_argument(
        "--compare",
        nargs="+",
        metavar="FILE.json",
        help="compare such results: ratios with their spread; of one with several engines, these",
    )
    group.add_argument(
        "--page", metavar="FILE.json", help="write the page of such a result, FILE.html"
    )
    group.add_argument(
        "--record",
        metavar="FILE.pass",
        help="write what gwq-bench-native needs beside FILE.gguf on a device without Python; -p, -n"
        " and --depth say what it can measure (default: as --suite edge)",
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
        type=lambda text: SWEEP if text == SWEEP else thread_counts(text),
        default=[None],
        metavar="N,N",
        help="thread counts (default: as many CPUs as this process may use); sweep: 1, 2, 4, ..."
        " and each cluster of like CPUs",
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
    _check(args)
    if args.compare:
        return bench_suite.compare_results(args)
    if args.page:
        return bench_suite.write_page(args)
    if args.record:
        return bench_suite.record_pass(args)
    if args.suite or args.minutes is not None:
        threads = None if args.threads in ([None], SWEEP) else args.threads
        return bench_suite.measure(args, threads, progress)
    return _rows(args, progress)


def _check(args: argparse.Namespace) -> None:
    """Raise GwqError where arguments do not go together."""
    suite = args.suite or args.minutes is not None
    for flag in ("compare", "page"):
        if getattr(args, flag) and (args.file or args.kernels or suite or args.against):
            raise GwqError(
                f"--{flag} measures nothing: give it results, and no GGUF file beside them"
            )
    if args.compare and args.o not in ("md", "json"):
        raise GwqError(f"-o {args.o}: --compare prints md or json")
    if args.compare or args.page:
        return
    if bool(args.file) == args.kernels:
        raise GwqError("give either a GGUF file or --kernels")
    if args.record and (suite or args.ops_profile or args.against or args.kernels):
        raise GwqError("--record measures nothing: give it a GGUF file, and -p, -n and --depth")
    if args.record and args.device != "cpu":
        raise GwqError("--record writes a forward pass for the CPU: leave out --device")
    if args.r < 1:
        raise GwqError("-r: give at least 1")
    if args.ops_profile and (
        args.kernels or args.against or len(args.threads) > 1 or args.depth != [0]
    ):
        raise GwqError(
            "--ops-profile looks at one file with one thread count: leave out --kernels, --against"
            " and --depth, and give one -t"
        )
    if args.ops_profile and len(args.p) > 1:
        raise GwqError("--ops-profile looks at one place in the context: give one -p")
    if args.kernels and args.gpu_layers is not None:
        raise GwqError("--gpu-layers goes with a file: leave it out beside --kernels")
    if suite and args.gpu_layers is not None:
        raise GwqError(
            "--suite and --minutes run as many layers on the GPU as fit: leave out --gpu-layers"
        )
    if args.kernels and args.against:
        raise GwqError("--against compares files: give FILE.gguf instead of --kernels")
    if not args.kernels and (args.ops or args.types or args.shapes):
        raise GwqError(
            "--ops, --types and --shapes choose kernels: give --kernels instead of a file"
        )
    if suite and (args.kernels or args.ops_profile):
        raise GwqError("--suite and --minutes run a file: leave out --kernels and --ops-profile")
    if suite and (args.p != [None] or args.n is not None or args.depth != [0] or args.r != 5):
        raise GwqError(
            "--suite and --minutes measure a fixed set, so that results can be compared: leave out"
            " -p, -n, --depth and -r"
        )
    if suite and args.o != "md":
        raise GwqError("--suite and --minutes write JSON into a file of their own: leave out -o")
    if suite and args.against and args.device != "cpu":
        raise GwqError("--against runs on the CPU: leave it out, or use --device cpu")
    if args.minutes is not None and not 0 < args.minutes <= MOST_MINUTES:
        raise GwqError(f"--minutes {args.minutes:g}: give more than 0, and at most {MOST_MINUTES}")
    if args.minutes is not None and not args.suite and args.against:
        raise GwqError("--minutes runs one file: leave out --against, or add --suite edge")
    if args.out and not suite:
        raise GwqError("--out is where --suite and --minutes write: give one of them")


def _rows(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Rows of a file, of its operations or of kernels."""
    from gwq_export.bench import cases, kernels, ops_profile, tables

    if args.file and not args.ops_profile:
        return _file_rows(args, progress)
    printer = tables.Printer(args.o, False, _print)

    def emit(row: dict[str, Any]) -> None:
        progress.close()
        printer.row(row)

    counts, _ = _threads(args.threads)
    if args.ops_profile:
        roof: list[dict[str, Any]] = []
        rows = ops_profile.profile_rows(
            *(args.file, args.p[0], args.n, counts[0], args.r, progress),
            *(args.device, args.gpu_layers),
        )
        for row in rows:
            emit(row)
    else:
        chosen = cases.select(args.ops, args.types, args.shapes)
        rows, roof = kernels.kernel_rows(
            chosen, counts, args.r, progress=progress, emit=emit, device=args.device
        )
    progress.close()
    printer.end(roof)
    return {"rows": rows, "roof": roof}


def _file_rows(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Rows of a file and of those beside it, with the conditions under which they ran."""
    from gwq_export.bench import models, tables
    from gwq_export.sensors.watch import Watch

    with Watch(gpu=models.gpu_of(args.device)) as watch:
        printer = tables.Printer(args.o, bool(args.against), _print, bool(watch.meters))

        def emit(row: dict[str, Any]) -> None:
            progress.close()
            printer.row(row)

        counts, cpus = _threads(args.threads)
        plan = models.Plan(args.p, args.n, args.depth, counts, cpus, args.r)
        plan.fitting(r for r, _ in models.readers(args.file, args.against))  # mistakes first
        watch.rest(progress)
        rows, roof = models.model_rows(
            *(args.file, plan, args.against, progress, emit),
            *(args.device, args.gpu_layers, watch),
        )
        missing = watch.missing
    progress.close()
    printer.end(roof, missing)
    return {"rows": rows, "roof": roof, "missing": missing}


def _print(text: str) -> None:
    print(text, flush=True)


def _threads(asked: Any) -> tuple[list[int | None], dict[int, list[int] | None]]:
    """(thread counts, CPUs that each is kept on) of -t."""
    if asked != SWEEP:
        return asked, {}
    from gwq_export.machine import default_threads
    from gwq_export.sensors.identity import describe
    from gwq_export.sensors.processors import thread_counts as suggested
    from gwq_export.sensors.system import System

    found = dict(suggested(describe(System())["clusters"], default_threads()))
    return list(found), found
