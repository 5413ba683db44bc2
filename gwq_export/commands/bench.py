"""gwq-bench: tokens/s and GB/s against the memory roof."""

import csv
import json
import sys

from gwq_export import GwqError
from gwq_export.console import add_base, make_parser, thread_counts


def parser():
    p = make_parser("gwq-bench", "Tokens per second of a GGUF file, or GB/s of the kernels, against the memory roof.")
    p.add_argument("file", nargs="?", metavar="FILE.gguf")
    p.add_argument("--kernels", action="store_true", help="measure the kernels on random matrices instead of a file")
    p.add_argument("-p", type=int, default=512, metavar="N", help="prompt tokens (default 512, 0: leave out)")
    p.add_argument("-n", type=int, default=128, metavar="N", help="generated tokens (default 128, 0: leave out)")
    p.add_argument("-t", "--threads", type=thread_counts, default=[None], metavar="N,N", help="thread counts (default: all CPUs)")
    p.add_argument("-r", type=int, default=5, metavar="N", help="repetitions (default 5)")
    p.add_argument("-o", choices=["md", "json", "jsonl", "csv"], default="md", help="output format")
    add_base(p)
    return p


def command(args, progress):
    from gwq_export import bench

    if bool(args.file) == args.kernels:
        raise GwqError("give either a GGUF file or --kernels")
    if args.r < 1:
        raise GwqError("-r: give at least 1")
    if args.kernels:
        rows = bench.kernel_rows(args.threads, args.r, progress=progress)
    else:
        rows = bench.model_rows(args.file, args.p, args.n, args.threads, args.r, progress, args.base)
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
