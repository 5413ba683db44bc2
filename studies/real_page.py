"""The scoreboard as Markdown: one table of files, one of ours at each stock file's size."""

import numpy as np

from gwq_export.bench.tables import table
from studies.real_files import SIZE_OF
from studies.real_scores import resampled

INTRO = """# Real models

How close files of llama.cpp's types and ours stay to real checkpoints, by whole files: all bytes
count, and stock files are as a user gets them, with the types that llama.cpp falls back to where a
width does not suit. `studies/real_models` made the rows and
`studies/real_models --page docs/results/real_models.md` this page.

* **Reference.** The checkpoints are at hand as quantized GGUF files. Their decoded weights lie on a
  grid, which a quantizer that finds it again stores without loss. So each weight of a quantized
  matrix has got uniform noise of half a step of its block to either side (seeded). Norms, biases,
  embedding and what is stored as floats are as they are. That model, its matrices in F16, is the
  reference that all files are made of and compared with. It is a little worse than the checkpoint.
  Of a Hugging Face folder the reference is its own weights.
* **Files.** Stock files are llama-quantize's, with an importance matrix that `gwq-export --imatrix`
  wrote from the same calibration tokens as our files use, of the bundled text. In
  all of them the embedding of SmolLM2 and Gemma, which is their head too, is Q8_0, as 256 does not
  divide its width: a third of a file of SmolLM2, three quarters of one of Gemma. Ours takes fewer
  bits there, which is a good part of the difference where files are small.
* **Figures.** Each file is decoded to float32 and computed with float32 activations and KV cache by
  our runtime: files differ by their weights alone. KL divergence is from the reference, in nats per
  token. Perplexity is by llama.cpp's protocol (the second half of a window is scored). ± is the
  standard error over windows, not tokens. The windows are the same for each file, so that
  differences between files are surer than the figures; the ratios have errors window by window.
"""
HEAD = ["file", "MB", "bits per weight", "perplexity", "KL divergence", "99.9 %", "same top token"]
EQUAL = ["at the size of", "MB", "stock: KL divergence", "ours", "ours / stock"]
REFERENCE = "reference"


def label(name):
    """A row's name for people."""
    where, _, what = name.partition("/")
    if where == "stock":
        return f"stock {what}"
    if where != "ours":
        return f"{name} (F16)"
    option = f"--type {what}" if what.startswith("gwq") else f"--size {what}"
    option = f"--size of {what.removeprefix(SIZE_OF)}'s" if what.startswith(SIZE_OF) else option
    return "**gwq-export**" if what == "default" else f"**gwq-export {option}**"


def head(row):
    """The names of the columns that `cells` fills."""
    return HEAD + [f"{t['task']}: as the reference ({t['n']})" for t in row["tasks"]]


def cells(row):
    """The cells of a row of rows.jsonl, Markdown."""
    out = [
        label(row["name"]),
        f"{row['bytes'] / 1e6:.1f}",
        f"{8 * row['bytes'] / row['params']:.2f}",
        f"{row['ppl']:.2f} ± {row['ppl_error']:.2f}",
    ]
    if "kld_mean" not in row:
        answers = [f"right {t['acc']:.1%} ± {t['acc_error']:.1%}" for t in row["tasks"]]
        return [*out, "0", "0", "100 %", *answers]
    return [
        *out,
        f"{row['kld_mean']:.4f} ± {row['kld_error']:.4f}",
        f"{row['kld_p999']:.3f} ± {row['kld_p999_error']:.3f}",
        f"{row['top1_agreement']:.1%} ± {row['top1_error']:.1%}",
        *(f"{t['agreement']:.1%} ± {t['agreement_error']:.1%}" for t in row["tasks"]),
    ]


def latest(rows):
    """{name: row} of one model: its latest ones, of the evaluation that the last row is of."""
    return {r["name"]: r for r in rows if r["evaluation"] == rows[-1]["evaluation"]}


def equal_sizes(rows):
    """Cells of EQUAL for each stock type of {name: row} that has ours at its size."""
    found = []
    for name, stock in sorted(rows.items(), key=lambda item: -item[1]["bytes"]):
        type = name.removeprefix("stock/")
        ours = rows.get(f"ours/{SIZE_OF}{type}")
        if name == type or ours is None:
            continue
        a, b = (np.array(row["by_window"]["kld"]) for row in (ours, stock))
        error = resampled(lambda draw, a=a, b=b: a[draw].sum() / b[draw].sum(), len(a))
        found.append(
            [
                type,
                f"{stock['bytes'] / 1e6:.1f}",
                f"{stock['kld_mean']:.4f} ± {stock['kld_error']:.4f}",
                f"{ours['kld_mean']:.4f} ± {ours['kld_error']:.4f}",
                f"{a.sum() / b.sum():.2f} ± {error:.2f}",
            ]
        )
    return found


def section(rows):
    """The part of the page on one model. rows: all of its rows.jsonl, in their order."""
    found = latest(rows)
    ordered = sorted(found.values(), key=lambda r: (r["name"] != REFERENCE, -r["bytes"], r["name"]))
    about, settings = rows[-1]["evaluation"], rows[-1]["settings"]
    tokens = {r["calibration_tokens"] for r in ordered if r["calibration_tokens"]}
    commits = sorted({r["commit"] for r in ordered})
    machines = sorted({r["machine"] for r in ordered})
    lines = [
        f"## {settings['model']}",
        "",
        f"SHA-256 {settings['sha256'][:16]}. Seed {settings['seed']}; calibration "
        f"{' or '.join(map(str, sorted(tokens))) or 'no'} tokens in samples of {settings['ctx']}. "
        f"Evaluation: {about['text']} (SHA-256 {about['text_sha256'][:16]}), {about['windows']} "
        f"windows of {about['ctx']} evenly spread over it, {ordered[0]['tokens']} tokens scored. "
        f"Machine: {'; '.join(machines)}. Commit{'s' * (len(commits) > 1)} {', '.join(commits)}.",
        "",
        table(head(ordered[0]), map(cells, ordered)),
    ]
    if pairs := equal_sizes(found):
        lines += ["", table(EQUAL, pairs)]
    return "\n".join(lines) + "\n"


def page(models):
    """The whole page. models: [rows of one model]; those without a row are left out."""
    return "\n".join([INTRO, *(section(rows) for rows in models if rows)])
