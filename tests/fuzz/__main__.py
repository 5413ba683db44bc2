"""tools/fuzz: mutated files through the commands, coverage-guided bytes through the native code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from native.build_fuzz import TARGETS
from tests.fuzz import native
from tests.fuzz.campaign import Campaign
from tests.fuzz.files import Files, replay
from tests.fuzz.seeds import seeds
from tests.fuzz.worker import FINE

FOLDER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gwq-export" / "fuzz"
SECONDS = 60.0
NAMES = ("files", *TARGETS)
KEPT = 48 << 10  # bytes of a target's corpus in tests/data


def arguments() -> argparse.ArgumentParser:
    """The options."""
    p = argparse.ArgumentParser(
        prog="tools/fuzz",
        description="Fuzz the reader, the runtime and the native code. Exit status 1: a finding.",
    )
    p.add_argument("--seconds", type=float, help=f"of each target (default {SECONDS:.0f})")
    p.add_argument("--count", type=int, help="executions of each target instead")
    p.add_argument("--target", action="append", choices=NAMES, help="default: all of them")
    p.add_argument("--folder", type=Path, default=FOLDER, help=f"default {FOLDER}")
    p.add_argument("--jobs", type=int, default=1, help="workers of the target `files`")
    p.add_argument(
        "--random", action="store_true", help="begin with random models alone, which need no torch"
    )
    p.add_argument(
        "--replay", nargs="+", type=Path, metavar="FILE.gguf", help="only these files, as findings"
    )
    p.add_argument(
        "--keep", action="store_true", help="only minimise the corpora, and put them in tests/data"
    )
    return p


def keep(campaign: Campaign, targets: Sequence[str]) -> None:
    """Put what the native targets have found into tests/data."""
    for target in targets:
        if target != "files":
            found = native.Native(campaign, target)
            found.minimise()
            inputs = native.pack(target, found.corpus, KEPT)
            print(f"{target}: {inputs} inputs in {native.CORPUS / target}.zip")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = arguments().parse_args(argv)
    if args.replay:
        outcomes = [replay(path) for path in args.replay]
        for path, (outcome, words) in zip(args.replay, outcomes, strict=True):
            print(f"{path}: {outcome} {words}")
        return int(any(outcome not in FINE for outcome, _ in outcomes))
    campaign = Campaign(args.folder)
    targets = args.target or NAMES
    why_not = native.why_not() if set(targets) - {"files"} else None
    if why_not:
        print(f"native targets are left out: {why_not}", file=sys.stderr)
        targets = [name for name in targets if name == "files"]
    seeds(campaign.seeds, exported=not args.random)
    if args.keep:
        keep(campaign, targets)
        return 0
    seconds = SECONDS if args.count is None and args.seconds is None else args.seconds
    try:
        for name in targets:
            print(f"{name}: begins after {campaign.of(name).runs:,} executions", flush=True)
            if name == "files":
                Files(campaign).run(seconds, args.count, args.jobs)
            else:
                native.Native(campaign, name).run(seconds, args.count)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
    print(campaign.table())
    found = [f for name in targets for f in campaign.of(name).findings]
    for name in found:
        print(f"finding: {campaign.findings / name}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
