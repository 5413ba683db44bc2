"""The files that a scoreboard compares, each made once and kept in the folder of its model.

Rows are called by where their file comes from:

    stock/Q4_K_M           llama.cpp's quantizer with an importance matrix, as a user gets it
    ours/default           the plain command
    ours/gwq4              --type gwq4
    ours/size-of-Q4_K_M    --size with the exact bytes of the stock file
    ours/76MB              --size 76MB
"""

import hashlib
import json
import os
import subprocess
from functools import cached_property
from pathlib import Path

import gwq_export
from gwq_export import GwqError
from gwq_export.format.foreign import foreign_type
from gwq_export.format.reader import Reader
from gwq_export.format.types import TYPES
from studies import real_reference

STOCK = "IQ2_S,IQ2_M,IQ3_S,Q3_K_M,Q4_0,IQ4_NL,IQ4_XS,Q4_K_M,Q5_K_M,Q6_K,Q8_0"
OURS = sorted((t.name for t in TYPES.values() if t.bits), reverse=True)
SIZE_OF = "size-of-"


def row_names(types, sizes=()):
    """Names of rows in the order in which they are made.

    types: of llama.cpp. sizes: as --size takes them.
    """
    names = ["ours/default"]
    for type in types:
        names += [f"stock/{type}", f"ours/{SIZE_OF}{type}"]
    return names + [f"ours/{what}" for what in (*OURS, *sizes)]


def quantizer():
    """The program that tools/build_llama_quantize makes. Raises GwqError where it is missing."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    program = cache / "gwq-export" / "llama-quantize"
    if not program.exists():
        raise GwqError(f"{program} is not there: run tools/build_llama_quantize")
    return program


def digest(source):
    """SHA-256 of a GGUF file or its parts; of a folder, of config.json and its weights' sizes."""
    if source.is_dir():
        weights = sorted((p.name, p.stat().st_size) for p in source.glob("*.safetensors"))
        config = (source / "config.json").read_bytes()
        return hashlib.sha256(config + repr(weights).encode()).hexdigest()
    found = hashlib.sha256()
    for part in Reader(source, foreign_type).parts:
        with open(part.path, "rb") as f:
            while data := f.read(1 << 20):
                found.update(data)
    return found.hexdigest()


def matrix_types(path):
    """{type: matrices} of a file, most frequent first."""
    types = [t.type.name for t in Reader(path, foreign_type).tensors.values() if _matrix(t)]
    return {name: types.count(name) for name in sorted(set(types), key=types.count, reverse=True)}


def parameters(path):
    """Weights of a file, a tied matrix once."""
    tensors = Reader(path, foreign_type).tensors.values()
    return sum(t.type.unit * t.nbytes // t.type.unit_bytes for t in tensors if not t.companion)


def _matrix(tensor):
    return len(tensor.shape) > 1 and not tensor.companion


def _write_json(path, value):
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1))
    part.rename(path)


class Files:
    """Files of one model. Making one again after a kill goes on with what is whole.

    source: a GGUF file or a Hugging Face folder. folder: theirs. samples (None: the export's own
    number) and ctx: of calibration, for every file. seed: of calibration and of the reference's
    noise. Raises GwqError for a folder that holds files of another model or of other settings.
    """

    def __init__(self, source, folder, samples=None, ctx=512, seed=0):
        self.source = Path(source)
        self.folder = Path(folder)
        if not self.source.exists():
            raise GwqError(f"{source} does not exist: give a GGUF file or a Hugging Face folder")
        self.options = {"samples": samples, "ctx": ctx, "seed": seed}
        self.settings = {"model": self.source.name, "sha256": digest(self.source)} | self.options
        self._check_settings()

    def _check_settings(self):
        path = self.folder / "settings.json"
        if path.exists():
            there = json.loads(path.read_text())
            if there != self.settings:
                other = [key for key in self.settings if there.get(key) != self.settings[key]]
                raise GwqError(
                    f"{self.folder} holds files of another {', '.join(other)}: "
                    "give another --work, or remove it"
                )
            return
        (self.folder / "files").mkdir(parents=True, exist_ok=True)
        _write_json(path, self.settings)

    @cached_property
    def reference(self):
        """The float GGUF file that all others are made of and compared with."""
        path = self.folder / "reference.gguf"
        if not path.exists():
            if self.source.is_dir():
                gwq_export.export(self.source, path, type="f16")
            else:
                real_reference.write(self.source, path, self.options["seed"])
        return path

    @property
    def model(self):
        """What gwq-export is given: the folder, or the reference of a file."""
        return self.source if self.source.is_dir() else self.reference

    @cached_property
    def importance(self):
        """The importance matrix for llama.cpp, from the calibration tokens of our exports."""
        path = self.folder / "imatrix.gguf"
        if not path.exists():
            part = path.with_suffix(".part")
            out = self.folder / "files" / "f16.gguf"
            made = gwq_export.export(self.model, out, type="f16", imatrix=part, **self.options)
            out.unlink()
            _write_json(path.with_suffix(".json"), made)
            part.rename(path)
        return path

    def path(self, name):
        """Where the file of a row is or will be."""
        return self.folder / "files" / f"{name.replace('/', '-')}.gguf"

    def make(self, name):
        """(path of the file of a row, what its maker tells of it). Raises GwqError."""
        path = self.path(name)
        facts = path.with_suffix(".json")
        if not path.exists():
            facts.unlink(missing_ok=True)
            where, what = name.split("/")
            made = self._stock(what, path) if where == "stock" else self._ours(what, path)
            _write_json(facts, made)
        return path, json.loads(facts.read_text()) if facts.exists() else {}

    def forget(self, name):
        """Remove the file of a row, which is then made again."""
        self.path(name).unlink(missing_ok=True)

    def _stock(self, type, path):
        part = path.with_suffix(".part")
        command = [quantizer(), "--imatrix", self.importance, self.reference, part, type]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise GwqError(f"llama-quantize {type}: {done.stdout.strip().splitlines()[-1]}")
        part.rename(path)
        made = json.loads(self.importance.with_suffix(".json").read_text())
        return {"calibration_tokens": made["calibration_tokens"], "said": done.stdout[-2000:]}

    def _ours(self, what, path):
        if what == "default":
            chosen = {}
        elif what.startswith(SIZE_OF):
            stock, _ = self.make(f"stock/{what.removeprefix(SIZE_OF)}")
            chosen = {"size": stock.stat().st_size}
        else:
            chosen = {"type" if what in TYPES else "size": what}
        return gwq_export.export(self.model, path, **chosen, **self.options)
