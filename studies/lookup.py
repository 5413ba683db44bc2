"""Tokens computed ahead: how much faster a model writes with them, and what they cost elsewhere.

    studies/lookup MODEL.gguf [--draft SMALLER.gguf] [-t THREADS] [-n TOKENS] [-r REPEATS]

Greedy answers of a chat model with prompt lookup and without, in alternation; or, with a draft
model, with both and with prompt lookup alone. A text of about a thousand tokens is to be copied
with a small change, or code with another name in it; free text is told to begin. Texts with and
without must be equal. Prints Markdown.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import gwq_export
from gwq_export.bench.tables import table
from gwq_export.machine import cpu_name, default_threads
from gwq_export.native.library import isa
from gwq_export.runtime.model import Model
from gwq_export.runtime.sampling import Sampling
from studies.paths import ROOT

SOURCE = 1000  # tokens of the text or code that is given
CODE = ROOT / "gwq_export" / "runtime" / "kv_cache.py"
TEXT = ROOT / "gwq_export" / "data" / "calibration.txt"


def cut(model: Model, path: Path) -> str:
    """The first SOURCE tokens of a file."""
    ids = model.tokenizer.encode(path.read_text(encoding="utf-8")[: 8 * SOURCE], bos=False)
    return model.tokenizer.decode(ids[:SOURCE])


def prompts(model: Model) -> dict[str, str]:
    """{kind of answer: prompt}"""
    return {
        "code, one name changed": "Rename the method `reserve` to `make_room` in this code and"
        f" write the whole code again:\n\n{cut(model, CODE)}",
        "text, corrected": "Correct the spelling of this text and write all of it again:\n\n"
        + cut(model, TEXT),
        "summary": f"Summarize this text:\n\n{cut(model, TEXT)}",
        "free text": "Write a long story about a lighthouse keeper and the sea.",
        "explanation": "Explain how a bicycle stays upright, in detail.",
    }


def rates(model: Model, prompt: str, tokens: int, repeats: int) -> dict[str, object]:
    """Ratios of decoding rates with and without, of neighbouring runs, and what was guessed.

    That is with and without the draft model, if there is one, else with and without lookup.
    """
    draft = model.draft
    ratios, stats = [], {}
    for _ in range(repeats):
        found = {}
        for ahead in (True, False):
            if draft is None:
                model.lookup = ahead
            else:
                model.draft = draft if ahead else None
            stats[ahead] = {}
            pieces = model.stream(prompt, tokens, Sampling(), chat=True, stats=stats[ahead])
            found[ahead] = "".join(pieces)
        if found[True] != found[False]:
            sys.exit(f"the texts differ: {found[True]!r} and {found[False]!r}")
        ratios.append(stats[True]["decode_tps"] / stats[False]["decode_tps"])
    model.draft = draft
    return {"ratios": ratios, **stats[True], "text": found[True]}


def parser() -> argparse.ArgumentParser:
    """Arguments of the study."""
    p = argparse.ArgumentParser(prog="studies/lookup", description=__doc__.split("\n")[0])
    p.add_argument("file", type=Path, metavar="MODEL.gguf")
    p.add_argument("--draft", type=Path, metavar="SMALLER.gguf")
    p.add_argument("-t", "--threads", type=int, default=default_threads())
    p.add_argument("-n", type=int, default=200, metavar="TOKENS")
    p.add_argument("-r", type=int, default=5, metavar="REPEATS")
    p.add_argument("--show", action="store_true", help="print the answers, too")
    return p


def main() -> None:
    """Measure and print."""
    args = parser().parse_args()
    model = gwq_export.load(args.file, threads=args.threads, draft=args.draft)
    guessed, right = ("drafted", "accepted") if args.draft else ("guessed", "right")
    rows = []
    for kind, prompt in prompts(model).items():
        r = rates(model, prompt, args.n, args.r)
        if args.show:
            print(f"--- {kind}\n{r['text']}\n", file=sys.stderr)
        low, middle, high = np.quantile(r["ratios"], [0.25, 0.5, 0.75])
        share = f"{r[right]} of {r[guessed]}" if r[guessed] else "none"
        speed = f"{middle:.2f} ({low:.2f}-{high:.2f})"
        rows.append([kind, r["prompt_tokens"], r["tokens"], share, speed])
    head = ["answer", "prompt tokens", "tokens", "guesses that came true", "times as fast"]
    files = f"{args.file.name} with {args.draft.name}" if args.draft else args.file.name
    print(f"{files}, {args.threads} threads, {isa()}, {cpu_name()}\n")
    print(table(head, rows))


if __name__ == "__main__":
    main()
