"""Does another checkout of this repository still do the same, and as fast?

    studies/compare_checkouts OTHER [--quick]
    studies/compare_checkouts OTHER --speed FILE.gguf [--speed FILE.gguf ...]
    studies/compare_checkouts OTHER --kernels [--types gwq4,f16] [--tokens 1,4]

Exports the bundled model and a small random mixture of experts with both checkouts in every way
that takes its own path through the code, and compares the files byte by byte, the keys of --json
and the exit status of bad calls. --speed times prompts and decoding of files instead, both builds
in alternation, and prints the ratio (this checkout's tokens per second over the other's); --kernels
does the same with kernels on random matrices, and counts those whose ratio is below 0.98. Both
checkouts must have their library built; both run with this Python.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gwq_export.bench import cases
from gwq_export.bench.contender import Contender
from gwq_export.errors import GwqError
from gwq_export.format.reader import Reader
from studies.compare_kernels import LEAST, compare_kernels, varied
from studies.paths import ROOT

MODEL = ROOT / "tests" / "data" / "gwq-reference"
SMALL = ["--samples", "6", "--ctx", "64"]
EXPORTS = {  # name -> (model, arguments)
    "gwq4": ("bundled", ["--type", "gwq4", *SMALL]),
    "gwq3, tuned": ("bundled", ["--type", "gwq3", *SMALL]),
    "gwq2, tuned": ("bundled", ["--type", "gwq2", *SMALL]),
    "gwq4, gradients choose": ("bundled", ["--type", "gwq4", "--saliency", "grad", *SMALL]),
    "budget": ("bundled", ["--bpw", "4.5", *SMALL]),
    "budget below 4 bits": ("bundled", ["--size", "2600KiB", *SMALL]),
    "preset paper": ("bundled", ["--preset", "paper", "--ctx", "64"]),
    "--stock q4_0": ("bundled", ["--stock", "q4_0", *SMALL]),
    "--stock iq4_nl": ("bundled", ["--stock", "iq4_nl", *SMALL]),
    "bridge": ("bundled", ["--type", "bridge", "--outliers", "0.01", *SMALL]),
    "f16 and imatrix": ("bundled", ["--type", "f16", "--imatrix", "{out}.imatrix", *SMALL]),
    "q4_0 with an f16 tensor": ("bundled", ["--type", "q4_0", "--tensor-type", "attn_v=f16"]),
    "experts, gwq4": ("experts", ["--type", "gwq4", *SMALL]),
    "experts, budget": ("experts", ["--bpw", "5", *SMALL]),
    "experts, imatrix": ("experts", ["--type", "f32", "--imatrix", "{out}.imatrix", *SMALL]),
    "dry run": ("bundled", ["--bpw", "4.5", "--dry-run", *SMALL]),
    "verified, with report and card": (
        "bundled",
        ["--type", "gwq4", "--verify", "--report", "{out}.html", "--card", "{out}.md", *SMALL],
    ),
    "sensitivities": ("bundled", ["--report-only", "--report", "{out}.json", *SMALL]),
}
QUICK = ["gwq4", "gwq3, tuned", "budget", "bridge", "experts, gwq4"]
OTHERS = {  # name -> arguments of a command that reads the first export, {file}
    "info": ["info", "{file}", "--check"],
    "eval": ["eval", "{file}", "--text", str(ROOT / "tests/data/eval.txt"), "--ctx", "256"],
    "run": ["run", "{file}", "--raw", "-p", "The city", "-n", "8"],
}
BAD = [  # calls that users can mend: exit status 2 and one line
    ["export", str(MODEL)],
    ["export", str(MODEL), "--out", "{out}", "--type", "gwq9"],
    ["export", str(MODEL), "--out", "{out}", "--bpw", "4", "--type", "gwq4"],
    ["export", str(MODEL), "--out", "{out}", "--bpw", "0.1", *SMALL],
    ["export", "/no/such/model", "--out", "{out}"],
    ["info", str(MODEL / "model.safetensors")],
    ["run", "{file}"],
    ["eval", "{file}"],
    ["bench"],
]


def call(checkout: Path, arguments: list[str]) -> tuple[int, dict, str]:
    """(exit status, last line of stdout as JSON, stderr) of a command of a checkout."""
    done = subprocess.run(
        [sys.executable, "-m", "gwq_export.cli", *arguments, "--json"],
        capture_output=True,
        text=True,
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        stdin=subprocess.DEVNULL,
    )
    lines = done.stdout.splitlines()
    try:
        result = json.loads(lines[-1])
    except (IndexError, ValueError):
        result = {}
    return done.returncode, result, done.stderr


def keys(value: object, prefix: str = "") -> set[str]:
    """Names of all keys in a JSON value, lists by their first element."""
    if isinstance(value, dict):
        return {f"{prefix}{k}" for k in value}.union(
            *(keys(v, f"{prefix}{k}.") for k, v in value.items())
        )
    if isinstance(value, list) and value:
        return keys(value[0], f"{prefix}[].")
    return set()


def make_experts(folder: Path) -> Path:
    """A small random Mixtral with the bundled model's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, MixtralConfig

    torch.manual_seed(3)
    config = MixtralConfig(
        vocab_size=json.loads((MODEL / "config.json").read_text())["vocab_size"],
        hidden_size=96,
        intermediate_size=200,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        num_local_experts=4,
        num_experts_per_tok=2,
        initializer_range=0.06,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(MODEL / name, folder / name)
    return folder


def compare(other: Path, quick: bool) -> int:
    """Print a line for each comparison; returns how many differ."""
    differing = 0

    def say(name: str, same: bool, detail: str) -> None:
        nonlocal differing
        differing += not same
        print(f"{'same' if same else 'DIFFERENT':9}  {name}: {detail}", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = {"bundled": MODEL, "experts": make_experts(folder / "experts")}
        first = folder / "first.gguf"
        for name, (model, arguments) in EXPORTS.items():
            if quick and name not in QUICK:
                continue
            found, results = [], []
            for checkout in (ROOT, other):
                out = folder / "model.gguf"
                text = [a.replace("{out}", str(out)) for a in arguments]
                status, result, _ = call(
                    checkout, ["export", str(models[model]), "--out", str(out), *text]
                )
                files = sorted(p for p in folder.glob("model.gguf*") if p.suffix != ".html")
                hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in files}
                hashes = {n: h for n, h in hashes.items() if not n.endswith((".md", ".json"))}
                found.append((status, hashes))
                results.append(keys(result))
                if not first.exists() and out.exists():
                    shutil.copyfile(out, first)
                for path in folder.glob("model.gguf*"):
                    path.unlink()
            say(
                name,
                found[0] == found[1],
                f"{found[0]}" + f" / {found[1]}" * (found[0] != found[1]),
            )
            if results[0] != results[1]:
                say(f"{name}, keys of --json", False, f"{results[0] ^ results[1]}")
        for name, arguments in OTHERS.items():
            text = [a.replace("{file}", str(first)) for a in arguments]
            (one, mine, _), (two, theirs, _) = (call(c, text) for c in (ROOT, other))
            say(name, (one, keys(mine)) == (two, keys(theirs)), f"status {one}, {len(mine)} keys")
        for arguments in BAD:
            text = [
                a.replace("{file}", str(first)).replace("{out}", str(folder / "bad.gguf"))
                for a in arguments
            ]
            (one, _, mine), (two, _, theirs) = (call(c, text) for c in (ROOT, other))
            say(" ".join(arguments[:4]), one == two, f"status {one}: {mine.strip()[-100:]}")
            if mine != theirs:
                print(f"           the other says: {theirs.strip()[-160:]}")
    return differing


def speed(other: Path, path: str, threads: int, prompt: int, gen: int, rounds: int) -> None:
    """Print the ratios of prompt and decoding, median and quartiles over rounds of both builds."""
    reader = Reader(path)
    pair = [Contender("gwq", reader, threads, prompt + gen + 1, c) for c in (ROOT, other)]
    ratios: dict[str, list[float]] = {"prompt": [], "decode": []}
    for k in range(rounds):
        for kind, (what, tokens) in enumerate((("prompt", (prompt, 0)), ("decode", (1, gen)))):
            order = (0, 1) if k % 2 else (1, 0)
            seconds = {i: pair[i].run(*tokens)[kind] for i in order}
            ratios[what].append(seconds[1] / seconds[0])
    for what, values in ratios.items():
        low, median, high = statistics.quantiles(values, n=4)
        print(
            f"{Path(path).name}, {threads} threads, {what}: {median:.3f} times the other's tokens"
            f" per second ({low:.3f} to {high:.3f}, {rounds} rounds)",
            flush=True,
        )
    for contender in pair:
        contender.close()


OPENING = """
import sys, time
start = time.perf_counter()
import gwq_export
imported = time.perf_counter()
gwq_export.load(sys.argv[1])
print(imported - start, time.perf_counter() - imported)
"""


def opening(other: Path, path: str, rounds: int) -> None:
    """Print the seconds of importing the package and of opening a file, medians in alternation."""
    seconds: dict[Path, list[list[float]]] = {ROOT: [], other: []}
    for _ in range(rounds):
        for checkout, rows in seconds.items():
            done = subprocess.run(
                [sys.executable, "-c", OPENING, path],
                capture_output=True,
                text=True,
                check=True,
                cwd=checkout,
                env=os.environ | {"PYTHONPATH": str(checkout)},
            )
            rows.append([float(t) for t in done.stdout.split()])
    for k, what in enumerate(("import gwq_export", f"open {Path(path).name}")):
        ours, theirs = (statistics.median(r[k] for r in rows) for rows in seconds.values())
        print(f"{what}: {1e3 * ours:.1f} ms, the other {1e3 * theirs:.1f} ms", flush=True)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = argparse.ArgumentParser(description="Does another checkout still do the same, and as fast?")
    p.add_argument("other", type=Path, help="folder of the other checkout, its library built")
    p.add_argument("--quick", action="store_true", help="a few of the exports")
    p.add_argument(
        "--speed", action="append", default=[], metavar="FILE.gguf", help="time this file instead"
    )
    p.add_argument("--kernels", action="store_true", help="time kernels instead")
    for name, type, example in (
        ("ops", str, "gemv,attention"),
        ("types", str, "gwq4,f16"),
        ("shapes", str, "4096x11008"),
        ("tokens", int, "1,4,12, in place of gwq-bench's"),
        ("outliers", float, "0,0.0025, in place of gwq-bench's"),
    ):
        p.add_argument(
            f"--{name}",
            type=lambda text, type=type: [type(part) for part in text.split(",")],
            metavar="A,B",
            help=f"with --kernels: these only, such as {example}",
        )
    p.add_argument("-t", "--threads", type=int, default=2, metavar="N")
    p.add_argument("-p", type=int, default=128, metavar="N", help="prompt tokens")
    p.add_argument("-n", type=int, default=32, metavar="N", help="decoded tokens")
    p.add_argument("-r", type=int, default=21, metavar="N", help="rounds")
    return p


def main() -> None:
    args = parser().parse_args()
    start = time.monotonic()
    other = args.other.resolve()
    for path in args.speed:
        path = str(Path(path).resolve())
        speed(other, path, args.threads, args.p, args.n, args.r)
        opening(other, path, args.r)
    differing, what = 0, "differ"
    if args.kernels:
        try:
            chosen = cases.select(args.ops, args.types, args.shapes)
            chosen = varied(chosen, args.tokens, args.outliers)
            differing = compare_kernels(other, chosen, args.threads, args.r)
        except GwqError as e:
            sys.exit(f"compare_checkouts: error: {e}")
        what = f"of {len(chosen)} rows below {LEAST}"
    elif not args.speed:
        differing = compare(other, args.quick)
    print(f"{differing} {what}; {time.monotonic() - start:.0f} s")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
