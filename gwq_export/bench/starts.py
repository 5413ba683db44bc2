"""How long an engine takes from the start of its process to the first token.

The file is read from the disk (a cold start) or lies in the page cache (a warm one).
"""

from typing import Any

from gwq_export.bench.contender import Contender
from gwq_export.format.reader import Reader
from gwq_export.runtime.page_cache import put_out, read_through, resident

LEFT = 0.05  # share of the file that may stay in the page cache of a cold start


def put_out_of_cache(reader: Reader) -> str | None:
    """Put a model's files out of the page cache; returns why that failed, else None."""
    reader.let_pages_go()
    for part in reader.parts:
        try:
            put_out(part.path)
        except OSError as e:
            return f"the file cannot be put out of the page cache ({e.strerror or e})"
        if (share := resident(part.path)) > LEFT:
            return (
                f"{share:.0%} of the file stay in the page cache: another program has it open, or"
                " its file system keeps files in memory"
            )
    return None


def start(
    reader: Reader,
    engine: str,
    threads: int,
    ctx: int,
    cold: bool,
    device: str = "cpu",
    gpu_layers: int | None = None,
) -> dict[str, Any]:
    """{"ready_ns", "start_ns", "why_not"}: from the start of the process until the model was ready
    and until the first token, of a prompt of one token.

    why_not: a sentence where a cold start is not possible, and then no times. Only the file is
    cold, not the programs. Raises GwqError.
    """
    if cold and (why := put_out_of_cache(reader)):
        return {"ready_ns": None, "start_ns": None, "why_not": why}
    if not cold:
        for part in reader.parts:
            read_through(part.path)
    contender = Contender(engine, reader, threads, ctx, None, device, gpu_layers)
    contender.close()
    facts = contender.facts
    return {"ready_ns": facts["ready_ns"], "start_ns": facts["start_ns"], "why_not": None}
