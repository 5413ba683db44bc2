"""What this machine can run models on."""

from typing import Any

from gwq_export.arch.config import read_config
from gwq_export.errors import GwqError
from gwq_export.format.reader import Reader
from gwq_export.machine import cpu_name, default_threads
from gwq_export.native import cuda
from gwq_export.native.library import isa
from gwq_export.runtime.kv_cache import cache_type
from gwq_export.runtime.placement import place


def devices() -> dict[str, Any]:
    """{"cpu": {name, threads, isa}, "cuda": rows of `native.cuda.devices`, "why_no_cuda"}.

    why_no_cuda: a sentence where there is no library, no driver or no device, else None.
    """
    found: list[dict[str, Any]] = []
    why = None
    try:
        found = cuda.devices()
        if not found:
            why = "this machine has no CUDA device"
    except GwqError as e:
        why = str(e).removeprefix("--device cuda: ")
    cpu = {"name": cpu_name(), "threads": default_threads(), "isa": isa()}
    return {"cpu": cpu, "cuda": found, "why_no_cuda": why}


def placements(reader: Reader, found: dict[str, Any]) -> dict[str, str]:
    """{"cuda:N": which layers of a file would run there}, of every device of `devices` that can.

    Raises GwqError.
    """
    config = read_config(reader)
    type = cache_type(reader, config)
    return {
        f"cuda:{i}": str(place(reader, config, cuda.room_of(i), type))
        for i, device in enumerate(found["cuda"])
        if device["usable"]
    }
