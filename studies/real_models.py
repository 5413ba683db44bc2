"""A fair scoreboard of real models: llama.cpp's files and ours, whole, at the same bytes.

    studies/real_models FILE_OR_FOLDER ... [--rows REGEX] [--windows 12] [--samples N]
                        [--types Q4_0,Q4_K_M] [--sizes 76MB] [--tasks piqa,arc_easy]
    studies/real_models --page docs/results/real_models.md     the page, of the rows that there are
    studies/real_models FILE_OR_FOLDER --rows ours/size --again     after a change of the exporter

Each finished row is a line of WORK/MODEL/rows.jsonl: after a kill the same command goes on with the
next one. Files are kept beside it, the reference's logits too. What the rows are is said on the
page and in studies/real_files.py.
"""

import argparse
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from gwq_export import GwqError
from gwq_export.evaluation import tasks
from gwq_export.machine import cpu_name, default_threads
from gwq_export.native.library import isa
from studies.paths import ROOT, SHARED
from studies.real_files import STOCK, Files, matrix_types, parameters, row_names
from studies.real_page import REFERENCE, cells, head, page
from studies.real_scores import Judge

TEXT = SHARED / "text" / "wiki.test.raw"
TASKS = SHARED / "tasks"


def work_folder():
    """Where rows and files are kept unless asked for otherwise."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "gwq-export" / "real_models"


def parser():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("models", nargs="*", help="GGUF files or Hugging Face folders")
    p.add_argument("--work", type=Path, default=work_folder(), help="rows and files (%(default)s)")
    p.add_argument("--rows", default="", metavar="REGEX", help="only rows whose name matches")
    p.add_argument("--list", action="store_true", help="print the rows' names, and make nothing")
    p.add_argument("--again", action="store_true", help="these rows anew, their files too")
    p.add_argument("--types", default=STOCK, help="of llama.cpp (%(default)s)")
    p.add_argument("--sizes", default="", help="more files of ours, as --size takes them: 76MB")
    p.add_argument("--samples", type=int, help="calibration samples (default: the export's)")
    p.add_argument("--seed", type=int, default=0, help="of noise and calibration (%(default)s)")
    p.add_argument("--text", type=Path, default=TEXT, help="evaluation text (%(default)s)")
    p.add_argument(
        "--windows", type=int, default=12, help="of the text, evenly spread; 0: all (%(default)s)"
    )
    p.add_argument(
        "--ctx", type=int, default=512, help="tokens of windows and samples (%(default)s)"
    )
    p.add_argument("--tasks", default="", help=f"zero-shot tasks of {TASKS}, or files: piqa,copa")
    p.add_argument("--items", type=int, default=100, help="of each task (%(default)s)")
    p.add_argument("--threads", type=int, default=default_threads())
    p.add_argument("--page", type=Path, help="write the page of all rows in --work to this file")
    return p


def main(argv=None):
    args = parser().parse_args(argv)
    logging.basicConfig(format="%(message)s")
    try:
        if not args.models and not args.page:
            raise GwqError("give a GGUF file or a Hugging Face folder, or --page FILE")
        for model in args.models:
            Board(model, args).run()
        if args.page:
            write_page(args.work, args.page)
    except (GwqError, OSError, re.error) as e:
        sys.exit(f"real_models: error: {e}")


def commit():
    """The checkout's, with -dirty where files differ from it."""
    command = ["git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def read_rows(path):
    """The rows of a rows.jsonl; a line that a kill left unfinished is no row."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
    return [json.loads(line) for line in lines[:-1]]


def append_row(path, row):
    """Add a row behind the last whole one."""
    with open(path, "ab+") as f:
        f.seek(0)
        f.truncate(f.read().rfind(b"\n") + 1)
        f.write(json.dumps(row).encode() + b"\n")
        f.flush()
        os.fsync(f.fileno())


def write_page(work, out):
    """Write the page of all models in the folder `work`."""
    found = sorted(work.glob("*/rows.jsonl"))
    if not found:
        raise GwqError(f"{work} holds no rows: run studies/real_models FILE_OR_FOLDER first")
    out.write_text(page([read_rows(path) for path in found]), encoding="utf-8")


class Board:
    """The rows of one model."""

    def __init__(self, model, args):
        self.args = args
        model = Path(model)
        # a trailing ".." or "." has no name of its own
        self.folder = args.work / (model.name if model.is_file() else model.resolve().name)
        self.rows_path = self.folder / "rows.jsonl"
        types, sizes = (filter(None, given.split(",")) for given in (args.types, args.sizes))
        names = [REFERENCE, *row_names(types, sizes)]
        self.names = [name for name in names if re.search(args.rows, name)]
        if not self.names:
            raise GwqError(f"--rows {args.rows}: no row is called so; --list names them")
        if args.list:
            return
        text = self._text()
        self.files = Files(model, self.folder, args.samples, args.ctx, args.seed)
        questions = self._questions()
        self.evaluation = {
            "text": args.text.name,
            "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "windows": args.windows,
            "ctx": args.ctx,
            "tasks": [[name, len(items)] for name, items in questions],
        }
        seen = json.dumps({k: v for k, v in self.evaluation.items() if k != "tasks"})
        known = self.folder / f"known-{hashlib.sha256(seen.encode()).hexdigest()[:12]}"
        self.judge = Judge(
            self.files.reference, known, text, args.ctx, args.windows, questions, args.threads
        )
        self.params = parameters(self.files.reference)

    def _text(self):
        try:
            return self.args.text.read_text(encoding="utf-8")
        except OSError:
            raise GwqError(f"{self.args.text} cannot be read: give a text by --text") from None

    def _questions(self):
        found = []
        for name in filter(None, self.args.tasks.split(",")):
            path = Path(name) if Path(name).is_file() else TASKS / f"{name}.jsonl"
            if not path.is_file():
                raise GwqError(f"--tasks {name}: there is no {path}")
            text = path.read_text(encoding="utf-8")
            found.append((path.stem, tasks.parse(text, path.stem, self.args.items)))
        return found

    def run(self):
        """Make and print every row that is missing; print those that are there, too."""
        if self.args.list:
            print("\n".join(self.names))
            return
        there = {
            row["name"]: row
            for row in read_rows(self.rows_path)
            if row["evaluation"] == self.evaluation and not self.args.again
        }
        printed = False
        for name in self.names:
            row = there.get(name) or self.row(name)
            if not printed:
                print(f"\n{self.files.source}\n\n| {' | '.join(head(row))} |")
                print("|" + " --- |" * len(head(row)))
                printed = True
            print(f"| {' | '.join(cells(row))} |", flush=True)

    def row(self, name):
        """Make the file of a row, score it and keep the row."""
        start = time.monotonic()
        if name == REFERENCE:
            path, made = self.files.reference, {}
        else:
            if self.args.again:
                self.files.forget(name)
            path, made = self.files.make(name)
        finished = time.monotonic()
        found = self.judge.reference() if name == REFERENCE else self.judge.score(path)
        row = {
            "name": name,
            "settings": self.files.settings,
            "evaluation": self.evaluation,
            "bytes": path.stat().st_size,
            "params": self.params,
            "types": matrix_types(path),
            "calibration_tokens": made.get("calibration_tokens"),
            "made": made,
            "seconds": {"make": finished - start, "score": time.monotonic() - finished},
            "commit": commit(),
            "machine": f"{cpu_name()}, {isa()}, {self.args.threads} threads",
        } | found
        append_row(self.rows_path, row)
        return row


if __name__ == "__main__":
    main()
