"""The document of a suite: what was measured on one device, for files and for other people.

Its form is data/edge.schema.json. No host name, user, serial number or path gets into it.
"""

import contextlib
import hashlib
import json
import os
import platform
from datetime import datetime, timezone
from importlib import metadata
from os import PathLike
from typing import Any

from gwq_export.bench import schema
from gwq_export.bench.files import context, model_type, params
from gwq_export.errors import GwqError
from gwq_export.format.reader import Reader
from gwq_export.native.library import isa
from gwq_export.sensors.identity import describe
from gwq_export.sensors.watch import Watch
from gwq_export.version import __version__

HEAD = 1 << 20  # bytes of the file by which it is known


def new(suite: str, reader: Reader, watch: Watch, gpu: str) -> dict[str, Any]:
    """A document in which nothing is measured yet. gpu: name of the one that computes, or ""."""
    peer = None
    with contextlib.suppress(metadata.PackageNotFoundError):
        peer = metadata.version("xllamacpp")
    with open(reader.path, "rb") as f:
        head = hashlib.sha256(f.read(HEAD)).hexdigest()
    return {
        "schema": schema.NAME,
        "version": schema.VERSION,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "suite": suite,
        "complete": False,
        "software": {
            "gwq_export": __version__,
            "python": platform.python_version(),
            "isa": isa(),
            "xllamacpp": peer,
        },
        "device": describe(watch.system) | {"gpu": gpu or None},
        "model": {
            "name": str(reader.metadata.get("general.name", "")),
            "file": os.path.basename(reader.path),
            "type": model_type(reader),
            "bytes": reader.nbytes,
            "params": params(reader),
            "context": context(reader),
            "sha256_head": head,
        },
        "sensors": {
            "meters": [
                {"meter": m.name, "covers": m.covers, "method": m.method, "interval_s": m.interval}
                for m in watch.meters
            ],
            "missing": watch.missing,
        },
        "steps": [],
        "starts": [],
        "rows": [],
        "best_threads": None,
        "sustained": None,
        "roof": [],
    }


def row(found: dict[str, Any], step: str) -> dict[str, Any]:
    """A row of `models`, as the document has it."""
    return {"step": step} | found | {"model_filename": os.path.basename(found["model_filename"])}


def without_folders(text: str, paths: list[str | PathLike[str]]) -> str:
    """A message in which files are called by their names alone."""
    for path in paths:
        name = os.path.basename(path)
        for known in (os.path.abspath(path), os.fspath(path)):
            text = text.replace(known, name)
    return text


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """A document that somebody has written. Raises GwqError."""
    try:
        with open(path, "rb") as f:
            found = json.loads(f.read())
    except OSError as e:
        raise GwqError(
            f"{path} cannot be read ({e.strerror or e}): give a file of gwq-bench --suite edge"
        ) from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("schema") != schema.NAME:
        raise GwqError(f"{path} is no result of gwq-bench --suite edge: give its JSON file")
    if found.get("version") != schema.VERSION:
        raise GwqError(
            f"{path} has version {found.get('version')!r} of the format and this program reads"
            f" {schema.VERSION}: install a gwq-export that reads it"
        )
    if why := schema.mistake(found):
        raise GwqError(f"{path} is damaged ({why}): copy it again, or measure anew")
    return found
