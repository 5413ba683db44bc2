"""What each part of the method is worth: docs/results/ablation.md and ablation.svg.

    studies/ablation [--models NAME ...] [--saved FILE] [--out FOLDER | --quick]

Every row is quantized by the code that writes files, decoded from the bytes, and computed in
float32 by transformers. The tables are printed, too. The readings below the tables of an earlier
page are kept: what stands between <!-- reading X --> and <!-- end -->.
"""

import argparse
import re
import sys
import time
from pathlib import Path

import torch
import transformers

from gwq_export import GwqError
from gwq_export.calibration.sources import CALIBRATION
from gwq_export.machine import cpu_name
from studies.ablation_lab import Lab
from studies.ablation_svg import plot
from studies.ablation_tables import (
    FEW,
    QUICK,
    Extent,
    curves,
    files,
    kernels,
    ladder,
    saliency,
    spending,
    weight_space,
)
from studies.paths import DATA, RESULTS, SHARED
from studies.text_halves import halves

BUNDLED = "gwq-reference"
SMALL = ("stories260K", "babyllama-tok361-1.0M")
GPT2 = SHARED / "models" / "gpt2-124M-attention-part" / "model.safetensors"
HEAD = """# What each part is worth

`{command}` made this page in {minutes:.0f} minutes on one thread of {cpu}. It is about small
models, and figures from such models rank methods; they do not foretell what a model a hundred times
their size would lose.

Every row quantizes all linear layers of the decoder by the code that `gwq-export` uses, decodes the
bytes, and computes in float32 with transformers; embedding and output head stay float32. KL
divergence is from the float32 model, the mean over tokens, in nats; ± is the standard error over
calibration seeds, each of which draws other samples of the calibration text. The evaluation windows
are the same in all rows, so differences between rows are surer than the values. Scored is the
second half of a window, as llama.cpp does. The perplexity ratio is to the float32 model. Bits per
weight are exact: bytes of the linear layers with scales, tables and side-tables. "Default" means
preset `default` but for what is said.

{models}
"""
TIMES = """\
Encoding is on one thread, the fastest of the seeds, without calibration, factorization of the
Hessians and sensitivity pass.

Tables, scales, feedback and sweeps change no step of decoding: a type's kernels take the same time
whatever is in the bytes, and only outliers cost time (`gwq-bench --kernels` measures more
shapes)."""
SIZE = """\
calibration seed 0. The line is what `--bpw` chooses, here for the decoder's linear layers alone.
ggml types are llama.cpp's own code (`tools/build_ggml`) on every linear layer, with its importance
vector from the same calibration tokens."""
FILES = """\
KL divergence of files that `gwq-export` wrote from the same calibration samples (seed 0). Decoded
and computed by transformers they must agree with the rows above; the runtime also rounds
activations to 8 bits, and a file as exported has a Q8_0 embedding."""


def readings(path):
    """{section: text} that someone wrote below the tables."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return dict(re.findall(r"<!-- reading (\w+) -->\n(.*?)<!-- end -->", text, re.DOTALL))


class Page:
    """Collects and prints sections."""

    def __init__(self, kept):
        self.kept = kept
        self.parts = []

    def add(self, text):
        self.parts.append(text)
        print(text, flush=True)

    def reading(self, section):
        self.add(f"<!-- reading {section} -->\n{self.kept.get(section, '')}<!-- end -->\n")


def labs(args):
    """[(Lab, Extent)]: the bundled model, and those of ../shared when they are there."""
    size = {"samples": args.samples, "count": args.windows, "seeds": args.seeds}
    if args.quick:
        size = {"samples": 4, "count": 2, "seeds": 1}
    size["saved"] = args.saved
    names = args.models
    if not names:
        small = [n for n in SMALL if not args.quick and (SHARED / "models" / n).is_dir()]
        names = [BUNDLED, *small]
    out = []
    for name in names:
        if name == BUNDLED:
            lab = Lab(DATA / name, CALIBRATION, DATA / "eval.txt", **size)
            extent = Extent()
        else:
            calib, text = halves(SHARED / "text" / "exl3_tiny.utf8")
            lab = Lab(SHARED / "models" / name, calib, text, **size | {"seeds": 1})
            extent = FEW
        out.append((lab, QUICK if args.quick else extent))
    return out


def described(lab):
    """One item of the list of models."""
    samples, ctx = lab.tokens(0).tokens.shape
    seeds = ", ".join(map(str, lab.seeds))
    return (
        f"* {lab.name}: {lab.weights:,} weights in the decoder's linear layers; {samples} x {ctx} "
        f"tokens of calibration, seeds {seeds}; evaluated on {len(lab.rows)} windows of {lab.ctx} "
        f"tokens, {len(lab.rows) * lab.scored} of them scored; loss of the float32 model "
        f"{lab.nll:.3f} nats per token."
    )


def parser():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument(
        "--models",
        nargs="+",
        metavar="NAME",
        help=f"{BUNDLED} and, from ../shared, {', '.join(SMALL)} (default: all)",
    )
    p.add_argument("--windows", type=int, default=16, help="evaluation windows of each model")
    p.add_argument("--samples", type=int, default=64, help="calibration samples (of 256 tokens)")
    p.add_argument("--seeds", type=int, default=3, help="calibration seeds on the bundled model")
    p.add_argument(
        "--saved",
        metavar="FILE",
        help="keep rows in FILE and take them from there when run again with the same code",
    )
    p.add_argument(
        "--out",
        type=Path,
        help="where ablation.md and .svg go (default: docs/results; with --quick nowhere)",
    )
    p.add_argument(
        "--quick",
        action="store_true",
        help="a few rows, in seconds: shows that it works, says nothing",
    )
    return p


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    try:
        run(args, " ".join(["studies/ablation", *argv]))
    except (GwqError, OSError) as e:
        sys.exit(f"ablation: error: {e}")


SECTIONS = {
    "A": ("Which weights stay FP16, and how many", saliency),
    "B": ("The bytes of 1 % outliers, spent otherwise", spending),
    "C": ("The ladder", ladder),
}


def run(args, command):
    start = time.monotonic()
    out = args.out or (None if args.quick else RESULTS)
    page = Page(readings((out or RESULTS) / "ablation.md"))
    measured = labs(args)
    first, extent = measured[0]

    for section, (heading, table) in SECTIONS.items():
        page.add(f"## {section}. {heading}\n")
        for lab, its_extent in measured:
            page.add(f"### {lab.name}\n\n{table(lab, its_extent)}")
        if section == "C":
            page.add(f"{TIMES} {kernels(extent)}")
        page.reading(section)

    if GPT2.exists():
        count, table = weight_space(GPT2, ("0",) if args.quick else ("",))
        page.add(
            "## D. Error of the weights alone\n\n"
            f"{count} attention matrices (768 x 768) of GPT-2 124M, without calibration.\n\n{table}"
        )
        page.reading("D")

    lines = curves(first, extent)
    plotted = "![KL divergence over bits per weight](ablation.svg)"
    page.add(f"## E. KL divergence over size\n\n{plotted}\n\n{first.name}, {SIZE}\n")
    page.reading("E")
    page.add(f"## F. The same rows as real files\n\n{FILES}\n\n{files(first, extent)}")
    page.reading("F")

    head = HEAD.format(
        command=command,
        minutes=(time.monotonic() - start) / 60,
        cpu=cpu_name(),
        models="\n".join(described(lab) for lab, _ in measured),
    )
    print(head)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "ablation.md").write_text(head + "\n" + "\n".join(page.parts), encoding="utf-8")
        drawn = plot(lines, f"Loss over size, {first.name}")
        (out / "ablation.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
