"""Speed of a model most of whose blocks are short convolutions: against llama.cpp and the roof.

    studies/bench_states             make what is missing, measure, write docs/results/states.md
    studies/bench_states --prepare   only make the files

An LFM2 of random weights; files stay in --folder, by default ~/.cache/gwq-export/states.
"""

import argparse
import os
import shlex
from datetime import date
from importlib.metadata import version
from pathlib import Path

import gwq_export
from gwq_export.machine import cpu_name, default_threads
from studies.bench_synthetic import measure, say, section, write_ours
from studies.paths import REFERENCE, RESULTS

SHAPE = {  # of the width of feed-forward layers, llama.cpp says that it is that of LFM2-350M
    "hidden_size": 1024,
    "intermediate_size": 4608,
    "block_auto_adjust_ff_dim": False,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 65536,
    "pad_token_id": None,
    "max_position_embeddings": 4096,
}
ATTENTION = (2, 5, 8, 10, 12, 14)  # of 16 blocks
COMMAND = "gwq-bench gwq4.gguf --against q4_0.gguf -t 1,2"
INTRO = """\
Speed on an LFM2 of random weights: 16 blocks 1024 numbers wide, 10 of them short convolutions over
3 positions, 6 attention with 8 key-value heads of 64, feed-forward layers of 4608, a vocabulary of
65536. Linear layers are gwq4 with 0.25 % outliers, embedding and head gwq4; the other file is Q4_0
with embedding and head in Q8_0. Written by `studies/bench_states`; what is measured how is said in
[benchmarks.md](benchmarks.md). tg: tokens decoded one by one; pp: tokens of a prompt at once; % of
roof: of what the machine can read at most."""


def write_model(folder):
    """An LFM2 of random weights and SHAPE as a Hugging Face folder."""
    import shutil

    import torch
    import transformers

    kinds = ["full_attention" if i in ATTENTION else "conv" for i in range(16)]
    config = transformers.Lfm2Config(num_hidden_layers=16, layer_types=kinds, **SHAPE)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(REFERENCE / name, folder / name)


def prepare(folder):
    """Make what is missing: the model, its exports in F16 and Q4_0, and ours."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        say("making the model")
        write_model(folder / "model")
    for type in ("f16", "q4_0"):
        if not (folder / f"{type}.gguf").exists():
            say(f"making {type}.gguf")
            gwq_export.export(folder / "model", folder / f"{type}.gguf", type=type)
    if not (folder / "gwq4.gguf").exists():
        say("making gwq4.gguf")
        write_ours(gwq_export.open_gguf(folder / "f16.gguf"), folder / "gwq4.gguf", "gwq4")


def parser():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    p.add_argument("--folder", type=Path, default=cache / "gwq-export" / "states")
    p.add_argument("--prepare", action="store_true")
    p.add_argument("--prefix", type=shlex.split, default=[])
    p.add_argument("-p", default="64")
    p.add_argument("-n", default="24")
    p.add_argument("-r", default="3")
    p.add_argument("--out", type=Path, default=RESULTS / "states.md")
    return p


def main(argv=None):
    args = parser().parse_args(argv)
    prepare(args.folder)
    if args.prepare:
        return
    command = [*shlex.split(COMMAND), "-p", args.p, "-n", args.n, "-r", args.r]
    text, _ = measure(command, args.prefix, args.folder, say)
    head = (
        f"{cpu_name()}, {default_threads()} CPUs. gwq-export {gwq_export.__version__}; "
        f"llama.cpp of xllamacpp {version('xllamacpp')}. {date.today()}."
    )
    parts = ["# A model with states", INTRO, head, section(command, text)]
    args.out.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
