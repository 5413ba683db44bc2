"""Exports killed with SIGKILL at random moments and continued, compared with undisturbed ones.

    python tests/system/victims.py MODEL FOLDER KILLS SEED '[{options of export}, ...]'

A child is forked for every attempt, from a process that has done one export and has no threads. It
tells of its events (a step of progress, a matrix quantized, a result stored) and is killed a random
time after a random one of them, so that kills fall into every phase however fast the machine is.
Prints {"killed": {phase: kills}, "files": how many were finished, ...} as JSON and fails where a
file is not what it should be.
"""

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

# a fork does not take threads with it
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np

import gwq_export
from gwq_export.compute.results import RESULT, Workdir
from gwq_export.pipeline import tensors as produce

PHASES = {"forward", "backward", "write"}


def run(model, out, work, options, tell):
    """An export that tells of its events: (kind, phase of progress or "")."""

    def telling(kind, function):
        def call(*args):
            found = function(*args)
            tell(kind, "")
            return found

        return call

    plain = produce.quantize, Workdir._write
    produce.quantize = telling("quantized", produce.quantize)
    Workdir._write = telling("stored", Workdir._write)
    gwq_export.export(
        model,
        out,
        work_dir=work,
        progress=lambda phase, done, total: tell("progress", phase),
        **options,
    )
    produce.quantize, Workdir._write = plain


def attempt(moment, *args):
    """`run` in a child, killed (events, seconds after) from its start.

    Returns (whether that came in time, its events).
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            run(*args, lambda *event: os.write(write, (json.dumps(event) + "\n").encode()))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    events, delay = moment
    with os.fdopen(read) as told:
        lines = [told.readline() for _ in range(events)]
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        lines += told.readlines()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status != 0, [json.loads(line) for line in lines if line]


def undisturbed(model, out, work, options):
    """(bytes of the file, {kind: events}, seconds between events)."""
    told = []
    run(model, out, work, options, lambda kind, _: told.append((kind, time.monotonic())))
    return (
        out.read_bytes(),
        Counter(kind for kind, _ in told),
        [b - a for (_, a), (_, b) in itertools.pairwise(told)],
    )


def read(path):
    """Read a result of a work folder to its end; raises ValueError where it is not whole."""
    with open(path, "rb") as file:
        while file.peek(1):
            np.lib.format.read_array(file)


def survive(model, out, work, options, expected, rng):
    """One export killed and gone on with until its file is there.

    Returns the phases in which it was killed.
    """
    content, total, gaps = expected
    phases = []
    told = Counter()
    while not out.exists():
        left = total.total() - told["quantized"] - told["stored"]  # those do not come again
        early = rng.random() ** (1 if told else 3)  # calibration is over soon
        hit, events = attempt(
            (int(left * early), rng.choice(gaps) * rng.random()), model, out, work, options
        )
        told += Counter(kind for kind, _ in events)
        if hit:
            phases.append(([phase for _, phase in events if phase] or ["start"])[-1])
            for path in work.glob(f"*{RESULT}"):
                read(path)
    assert out.read_bytes() == content
    # lost is the one in hand
    assert total["quantized"] <= told["quantized"] <= total["quantized"] + len(phases), (
        told,
        total,
    )
    assert hit or not any(work.iterdir())
    return phases


def main(model, folder, kills, seed, cases):
    rng = random.Random(seed)
    killed = Counter()
    started = time.monotonic()
    places = model, folder / "m.gguf", folder / "work"
    _, out, work = places
    known = []
    for options in cases:
        known.append(undisturbed(*places, options))
        out.unlink()
    for files in itertools.count():
        if killed.total() >= kills and set(killed) >= PHASES:
            break
        case = files % len(cases)
        killed.update(survive(*places, cases[case], known[case], rng))
        shutil.rmtree(work)  # the last kill may have come while it was emptied
        out.unlink()
    assert not any(folder.iterdir())
    print(
        json.dumps(
            {
                "killed": killed,
                "files": files,
                "seed": seed,
                "seconds": round(time.monotonic() - started, 1),
            }
        )
    )


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        int(sys.argv[3]),
        int(sys.argv[4]),
        json.loads(sys.argv[5]),
    )
