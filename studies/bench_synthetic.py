"""Speed against llama.cpp and the memory roof, on a Llama of 1.1 billion random weights; the whole
of docs/benchmarks.md.

    tools/bench_synthetic                                  make what is missing, measure, write
    docs/benchmarks.md tools/bench_synthetic --prepare                        only make the model,
    our exports and the stock files tools/bench_synthetic --only gwq3 --out -              one part,
    on stdout tools/bench_synthetic --prefix 'taskset -c 0-3'        what every measuring command is
    started with

Files (10 GB) stay in --folder, by default ~/.cache/gwq-export/bench. Values do not matter for
speed: calibration is left out, and all matrices of one shape and type have the same bytes, each a
copy of its own, because quantizers are slow.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

import gwq_export
from gwq_export import GwqError
from gwq_export.bench import tables
from gwq_export.bench.worker import Gwq
from gwq_export.format.types import TYPES
from gwq_export.format.writer import Writer
from gwq_export.machine import cpu_name
from gwq_export.quantization.quantize import quantize
from gwq_export.quantization.recipe import Recipe
from studies import ggml
from studies.paths import RESULTS, ROOT

OURS = {
    "gwq4": ("gwq4", 0.0025),
    "gwq4-0": ("gwq4", 0.0),
    "gwq3": ("gwq3", 0.0025),
    "gwq2": ("gwq2", 0.0025),
}  # type, outliers
METHOD = {"saliency": "magnitude", "curvature": False}  # needs no gradients
ENDS = "gwq4"  # embedding and output head of our files
PARTS = {  # our file -> those of other types it is compared with
    "gwq4": ["f16", "q4_0", "q4_k_m", "iq4_xs"],
    "gwq4-0": ["gwq4", "q4_0"],
    "gwq3": ["q3_k", "iq3_s"],
    "gwq2": ["q2_k"],
}


NEEDS = {name: [name, *others] for name, others in PARTS.items()} | {
    "busy": ["gwq4"],
    "kernels": [],
}  # part -> its files
KERNELS = ["--ops", "gemv,gemm", "--shapes", "2048x2048,4096x11008"]


def stock_types(name, tensors, layers):
    """{tensor: ggml type} of the matrices of a stock file.

    q4_k_m: as llama-quantize mixes it; else one type; the output head is q6_k.
    """
    types = {}
    for tensor in tensors:
        type = name.removesuffix("_m")
        if tensor == "output.weight":
            type = "q6_k"
        elif name == "q4_k_m" and (
            block := re.fullmatch(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight", tensor)
        ):
            i = int(block[1])
            more = i < layers // 8 or i >= 7 * layers // 8 or (i - layers // 8) % 3 == 2
            type = "q6_k" if more else type
        types[tensor] = type
    return types


def write_ours(f16, out, name):
    """A file of OURS, as `gwq-export --type TYPE --outliers N --tensor-type
    'token_embd|^output\\.=gwq4'` makes it.
    """
    (type, outliers), recipes, made = OURS[name], {}, {}
    for t in f16.tensors.values():
        ends = t.name in ("token_embd.weight", "output.weight")
        name = "f32" if len(t.shape) == 1 else ENDS if ends else type
        recipes[t.name] = Recipe(
            TYPES[name], **({"outliers": 0} if name == "f32" else METHOD | {"outliers": outliers})
        )
    layout = [
        (n, TYPES[k], shape)
        for t in f16.tensors.values()
        for n, k, shape in recipes[t.name].tensors(t.name, t.shape)
    ]
    with Writer(out, dict(f16.metadata), layout) as writer:
        for t in f16.tensors.values():
            recipe, key = recipes[t.name], (recipes[t.name], t.shape)
            if key not in made:
                made[key] = quantize(t.dequantize(), {}, recipe)
            for (name, _, _), data in zip(recipe.tensors(t.name, t.shape), made[key], strict=True):
                writer.write(name, data)


def write_stock(f16, out, name):
    """A stock file; see `stock_types`."""
    made = {}

    def encode(type, weight, importance):
        key = type, weight.shape
        if key not in made:
            made[key] = ggml.quantize(type, weight.astype("float32"), importance)
        return made[key]

    types = stock_types(
        name,
        [t.name for t in f16.tensors.values() if len(t.shape) == 2],
        f16.metadata["llama.block_count"],
    )
    ggml.write_gguf(f16.path, f"{out}.part", types, encode=encode)
    os.replace(f"{out}.part", out)


def prepare(folder, wanted, say):
    """Make what is missing in `folder` for the parts wanted: the model, its F16 export, our files,
    stock files.
    """
    model, f16 = folder / "model", folder / "f16.gguf"
    files = {name for part in wanted for name in NEEDS[part]}
    ours = [name for name in OURS if name in files]
    if ours and not f16.exists():
        from studies.synthetic import write_llama

        say(f"making {f16}")
        write_llama(model)
        gwq_export.export(model, f16, type="f16")
    others = sorted(files - {"f16", *OURS})
    for names, write in ((ours, write_ours), (others, write_stock)):
        for name in names:
            out = folder / f"{name}.gguf"
            if not out.exists():
                say(f"making {out}")
                write(gwq_export.open_gguf(f16), out, name)


def measure(command, prefix, folder, say):
    """(Markdown, JSON object) of a gwq-bench command, run in `folder`."""
    say(shlex.join(command))
    start = [*prefix, sys.executable, "-m", "gwq_export.cli", "bench", *command[1:], "--json"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        start, capture_output=True, text=True, cwd=folder, env=os.environ | {"PYTHONPATH": path}
    )
    if done.returncode:
        raise GwqError(f"{shlex.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    text, result = done.stdout.rstrip("\n").rsplit("\n", 1)
    return text, json.loads(result)


def beside_busy(file, threads=2, rounds=7, gen=24):
    """A sentence: the share of its speed that decoding keeps while another process computes without
    end, in alternation.
    """
    engine, kept = Gwq(str(file), threads, gen + 1), []
    for _ in range(rounds):
        idle = engine.run([1], gen)[1]
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
            time.sleep(0.3)
            kept.append(idle / engine.run([1], gen)[1])
            other.kill()
    low, median, high = np.quantile(kept, (0.25, 0.5, 0.75))
    return (
        f"Decoding {gen} tokens of {file.name} with {threads} threads, beside one other process in an endless loop, keeps "
        f"{median:.2f} of its speed without it (quartiles {low:.2f}-{high:.2f}, {rounds} pairs of runs)."
    )


def section(command, text):
    return f"```\n{shlex.join(command)}\n```\n\n{text}"


def summary(results):
    """How many times as fast our file is, in one table: a line per other file and engine, a column
    per test and thread count.
    """
    columns, lines = {}, {}
    for result in results:
        ours = result["rows"][0]
        for r in result["rows"]:
            if r["times_as_fast"] is None:
                continue
            column = f"{tables.test_name(r)}, {r['n_threads']} thread{'s' * (r['n_threads'] > 1)}"
            columns[column] = None
            key = (
                ours["model_filename"],
                f"{ours['model_size'] / 2**20:.0f}",
                r["model_filename"],
                f"{r['model_size'] / 2**20:.0f}",
                r["backends"],
            )
            lines.setdefault(key, {})[column] = tables.ratio(r)
    order = sorted(columns, key=lambda c: (not c.startswith("tg"), c))
    head = ["ours", "MiB", "other", "MiB", "by", *order]
    body = [[*key, *(cells.get(c, "") for c in order)] for key, cells in lines.items()]
    return tables.table(head, body)


INTRO = """\
Speed on a Llama of 1.1 billion random weights (TinyLlama's shape), written by `tools/bench_synthetic` with the commands below.
Linear layers are of the type that names the file, with 0.25 % outliers (gwq4-0: none); embedding and head are gwq4 in ours, that
type and Q6_K in stock files (`q4_k_m` mixes as llama-quantize does). Every file runs in a process of its own, stopped while
another one is timed, and files take turns, so that ratios come from neighbours in time. llama.cpp reports its own timings, with
as many threads and tokens. "no repack": its weights stay as the file has them (`no_extra_bufts`), as ours always do. pp: tokens
of a prompt at once; tg: tokens decoded one by one."""


def document(sections, results):
    parts = [
        "# Benchmarks",
        INTRO,
        f"{cpu_name()}, {os.cpu_count()} CPUs. gwq-export {gwq_export.__version__}; llama.cpp of xllamacpp "
        f"{version('xllamacpp')}. {date.today()}.",
    ]
    if results:
        explained = "How many times as fast ours is: medians of neighbouring runs with their quartiles, above 1 where ours is faster."
        parts += ["## Ours and others", explained, summary(results)]
    return "\n\n".join([*parts, *sections]) + "\n"


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--folder", type=Path, default=cache / "gwq-export" / "bench")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--only", action="append", choices=[*NEEDS])
    parser.add_argument("--prefix", type=shlex.split, default=[])
    parser.add_argument("-p", default="128")
    parser.add_argument("-n", default="32")
    parser.add_argument("-t", default="1,2")
    parser.add_argument("-r", default="5")
    parser.add_argument("--out", default=RESULTS / "benchmarks.md")
    args = parser.parse_args(argv)

    def say(text):
        print(text, file=sys.stderr, flush=True)

    args.folder.mkdir(parents=True, exist_ok=True)
    wanted, sections, results = args.only or [*NEEDS], [], []
    prepare(args.folder, wanted, say)
    if args.prepare:
        return
    for ours in (name for name in PARTS if name in wanted):
        sections.append(f"## {ours}")
        for other in PARTS[
            ours
        ]:  # one by one: fewer files in memory, and each close to ours in time
            command = [
                "gwq-bench",
                f"{ours}.gguf",
                "--against",
                f"{other}.gguf",
                "-p",
                args.p,
                "-n",
                args.n,
                "-t",
                args.t,
                "-r",
                args.r,
            ]
            text, result = measure(command, args.prefix, args.folder, say)
            results.append(result)
            sections.append(section(command, text))
    if "busy" in wanted:
        say("beside a busy process")
        sections += ["## Beside a busy process", beside_busy(args.folder / "gwq4.gguf")]
    if "kernels" in wanted:
        command = ["gwq-bench", "--kernels", *KERNELS, "-t", args.t, "-r", args.r]
        sections += [
            "## Kernels",
            section(command, measure(command, args.prefix, args.folder, say)[0]),
        ]
    text = document(sections, results)
    if args.out == "-":
        print(text, end="")
    else:
        Path(args.out).write_text(text)


if __name__ == "__main__":
    try:
        main()
    except GwqError as e:
        sys.exit(f"bench_synthetic: {e}")
