#!/usr/bin/env bash
# 2026-11-28
#
# Expected: gguf-py's GGUFReader maps a file into memory, so that opening one to look at a key or
# at the names of its tensors costs little more than its header.
#
# Instead: it makes a numpy array of every element of every array at once, and two of a string (its
# length, its bytes). A header with a vocabulary takes more than 50 times its bytes: 50,000 tokens,
# with their types and as many merges, take over 100 MB of memory, and 150,000 half a gigabyte.
#
# Why it matters: tools that open many GGUF files, or run beside a model on a small machine, pay
# that to read one key. GGUFReader has no option to skip or delay arrays.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check gguf==0.19.0

cat > "$work/main.py" <<'PYTHON'
import importlib.metadata
import sys
import tracemalloc
from pathlib import Path

import gguf
import numpy as np


def write(path, count):
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(64)
    if count:
        w.add_token_list([f"token{i}" for i in range(count)])
        w.add_token_types([gguf.TokenType.NORMAL] * count)
        w.add_token_merges([f"left{i} right{i}" for i in range(count)])
    w.add_tensor("token_embd.weight", np.zeros((32, 32), np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


for package in ("gguf", "numpy"):
    print(package, importlib.metadata.version(package))
ratio = {}
for count in (0, 25_000, 50_000):
    write("file.gguf", count)
    tracemalloc.start()
    reader = gguf.GGUFReader("file.gguf")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    length = Path("file.gguf").stat().st_size
    ratio[count] = held / length
    views = sum(len(field.parts) for field in reader.fields.values())
    print(f"{count} tokens and merges: file of {length / 1e6:.2f} MB, reader holds "
          f"{held / 1e6:.2f} MB ({ratio[count]:.1f} times) in {views} numpy arrays")
as_described = min(ratio[25_000], ratio[50_000]) > 50
print("as described" if as_described else "NO LONGER as described")
sys.exit(not as_described)
PYTHON

cd "$work"
venv/bin/python main.py
