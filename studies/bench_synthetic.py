"""Speed against llama.cpp and the memory roof, on a Llama of 1.1 billion random weights.

    studies/bench_synthetic                        make what is missing, measure, write
                                                   docs/results/benchmarks.md
    studies/bench_synthetic --prepare              only make the model, our files and ggml files
    studies/bench_synthetic --only gwq3 --out -    one part, on stdout
    studies/bench_synthetic --prefix 'taskset -c 0-3'    what every measuring command starts with

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
from gwq_export.machine import cpu_name, default_threads
from gwq_export.quantization.quantize import quantize
from gwq_export.quantization.recipe import Recipe
from studies import ggml
from studies.paths import RESULTS, ROOT
from studies.synthetic import write_llama

OURS = {  # file -> (type, outliers)
    "gwq4": ("gwq4", 0.0025),
    "gwq4-0": ("gwq4", 0.0),
    "gwq3": ("gwq3", 0.0025),
    "gwq2": ("gwq2", 0.0025),
}
METHOD = {"saliency": "magnitude", "curvature": False}  # needs no gradients
ENDS = "gwq4"  # embedding and output head of our files
PARTS = {  # our file -> those of other types it is compared with
    "gwq4": ["f16", "q4_0", "q4_k_m", "iq4_xs"],
    "gwq4-0": ["gwq4", "q4_0"],
    "gwq3": ["q3_k", "iq3_s"],
    "gwq2": ["q2_k"],
}
NEEDS = {  # part -> its files
    **{name: [name, *others] for name, others in PARTS.items()},
    "busy": ["gwq4"],
    "kernels": [],
}
KERNELS = ["--ops", "gemv,gemm", "--shapes", "2048x2048,4096x11008"]


def ggml_types(name, tensors, layers):
    """{tensor: ggml type} of the matrices of a ggml file.

    q4_k_m: as llama-quantize mixes it; else one type; the output head is q6_k.
    """
    types = {}
    for tensor in tensors:
        type = name.removesuffix("_m")
        block = re.fullmatch(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight", tensor)
        if tensor == "output.weight":
            type = "q6_k"
        elif name == "q4_k_m" and block:
            i = int(block[1])
            eighth = layers // 8
            if i < eighth or i >= 7 * layers // 8 or (i - eighth) % 3 == 2:
                type = "q6_k"
        types[tensor] = type
    return types


def our_recipe(tensor, type, outliers):
    """The Recipe of a tensor in a file of OURS."""
    if tensor.type.name == "f32":  # norms, and what else is no matrix
        return Recipe(TYPES["f32"], outliers=0)
    if tensor.name in ("token_embd.weight", "output.weight"):
        type = ENDS
    return Recipe(TYPES[type], outliers=outliers, **METHOD)


def write_ours(f16, out, name):
    """Write a file of OURS.

    It is as `gwq-export --type TYPE --outliers N --tensor-type 'token_embd|^output\\.=gwq4'` makes
    it. f16: a Reader of the model's F16 export.
    """
    recipes = {t.name: our_recipe(t, *OURS[name]) for t in f16.tensors.values()}
    layout = [
        (tensor, TYPES[type], shape)
        for t in f16.tensors.values()
        for tensor, type, shape in recipes[t.name].tensors(t.name, t.shape)
    ]
    made = {}
    with Writer(out, dict(f16.metadata), layout) as writer:
        for t in f16.tensors.values():
            recipe = recipes[t.name]
            key = recipe, t.shape
            if key not in made:
                made[key] = quantize(t.dequantize(), {}, recipe)
            parts = recipe.tensors(t.name, t.shape)
            for (tensor, _, _), data in zip(parts, made[key], strict=True):
                writer.write(tensor, data)


def write_ggml(f16, out, name):
    """Write a ggml file; see `ggml_types`. f16: a Reader of the model's F16 export."""
    made = {}

    def encode(type, weight, importance):
        key = type, weight.shape
        if key not in made:
            made[key] = ggml.quantize(type, weight.astype("float32"), importance)
        return made[key]

    matrices = [t.name for t in f16.tensors.values() if len(t.shape) == 2]
    types = ggml_types(name, matrices, f16.metadata["llama.block_count"])
    ggml.write_gguf(f16.path, f"{out}.part", types, encode=encode)
    os.replace(f"{out}.part", out)


def prepare(folder, wanted, say):
    """Make what is missing in `folder` for the parts wanted.

    That is the model, its F16 export, our files and ggml files. say: called with progress as text.
    """
    f16 = folder / "f16.gguf"
    files = {name for part in wanted for name in NEEDS[part]}
    ours = [name for name in OURS if name in files]
    if ours and not f16.exists():
        say(f"making {f16}")
        write_llama(folder / "model")
        gwq_export.export(folder / "model", f16, type="f16")
    others = sorted(files - {"f16", *OURS})
    for names, write in ((ours, write_ours), (others, write_ggml)):
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
    env = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(start, capture_output=True, text=True, cwd=folder, env=env)
    if done.returncode:
        raise GwqError(f"{shlex.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    text, result = done.stdout.rstrip("\n").rsplit("\n", 1)
    return text, json.loads(result)


def beside_busy(file, threads=2, rounds=7, gen=24):
    """A sentence: the share of its speed that decoding keeps beside another process.

    That one computes without end; runs with and without it alternate.
    """
    engine = Gwq(str(file), threads, gen + 1)
    kept = []
    for _ in range(rounds):
        idle = engine.run([1], gen)[1]
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
            time.sleep(0.3)
            kept.append(idle / engine.run([1], gen)[1])
            other.kill()
    low, median, high = np.quantile(kept, (0.25, 0.5, 0.75))
    return (
        f"Decoding {gen} tokens of {file.name} with {threads} threads, beside one other process in "
        f"an endless loop, keeps {median:.2f} of its speed without it (quartiles "
        f"{low:.2f}-{high:.2f}, {rounds} pairs of runs)."
    )


def section(command, text):
    return f"```\n{shlex.join(command)}\n```\n\n{text}"


def summary(results):
    """How many times as fast our file is, in one table.

    A line per other file and engine, a column per test and thread count.
    """
    columns = {}
    lines = {}
    for result in results:
        ours = result["rows"][0]
        for r in result["rows"]:
            if r["times_as_fast"] is None:
                continue
            threads = r["n_threads"]
            plural = "s" if threads > 1 else ""
            column = f"{tables.test_name(r)}, {threads} thread{plural}"
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
Speed on a Llama of 1.1 billion random weights (TinyLlama's shape), written by
`studies/bench_synthetic` with the commands below. Linear layers are of the type that names the
file, with 0.25 % outliers (gwq4-0: none); embedding and head are gwq4 in ours, that type and Q6_K
in ggml files (`q4_k_m` mixes as llama-quantize does). Every file runs in a process of its own,
stopped while another one is timed, and files take turns, so that ratios come from neighbours in
time. llama.cpp reports its own timings, with as many threads and tokens. "no repack": its weights
stay as the file has them (`no_extra_bufts`), as ours always do. pp: tokens of a prompt at once; tg:
tokens decoded one by one."""
EXPLAINED = """\
How many times as fast ours is: medians of neighbouring runs with their quartiles, above 1 where
ours is faster."""


def document(sections, results):
    parts = [
        "# Benchmarks",
        INTRO,
        f"{cpu_name()}, {default_threads()} CPUs. gwq-export {gwq_export.__version__}; "
        f"llama.cpp of xllamacpp {version('xllamacpp')}. {date.today()}.",
    ]
    if results:
        parts += ["## Ours and others", EXPLAINED, summary(results)]
    return "\n\n".join([*parts, *sections]) + "\n"


def parser():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    p.add_argument("--folder", type=Path, default=cache / "gwq-export" / "bench")
    p.add_argument("--prepare", action="store_true")
    p.add_argument("--only", action="append", choices=[*NEEDS])
    p.add_argument("--prefix", type=shlex.split, default=[])
    p.add_argument("-p", default="128")
    p.add_argument("-n", default="32")
    p.add_argument("-t", default="1,2")
    p.add_argument("-r", default="5")
    p.add_argument("--out", default=RESULTS / "benchmarks.md")
    return p


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(args):
    args.folder.mkdir(parents=True, exist_ok=True)
    wanted = args.only or [*NEEDS]
    prepare(args.folder, wanted, say)
    if args.prepare:
        return
    sections = []
    results = []
    runs = ["-t", args.t, "-r", args.r]
    for ours in (name for name in PARTS if name in wanted):
        sections.append(f"## {ours}")
        # one by one: fewer files in memory, and each close to ours in time
        for other in PARTS[ours]:
            files = [f"{ours}.gguf", "--against", f"{other}.gguf"]
            command = ["gwq-bench", *files, "-p", args.p, "-n", args.n, *runs]
            text, result = measure(command, args.prefix, args.folder, say)
            results.append(result)
            sections.append(section(command, text))
    if "busy" in wanted:
        say("beside a busy process")
        sections += ["## Beside a busy process", beside_busy(args.folder / "gwq4.gguf")]
    if "kernels" in wanted:
        command = ["gwq-bench", "--kernels", *KERNELS, *runs]
        text, _ = measure(command, args.prefix, args.folder, say)
        sections += ["## Kernels", section(command, text)]
    text = document(sections, results)
    if args.out == "-":
        print(text, end="")
    else:
        Path(args.out).write_text(text)


def main(argv=None):
    try:
        run(parser().parse_args(argv))
    except GwqError as e:
        sys.exit(f"bench_synthetic: error: {e}")


if __name__ == "__main__":
    main()
