"""The options of an export, as one table.

The Python signature, the command line, the checks, the identity of a work folder and the table in
docs/export.md are all made from the fields of `ExportOptions`. To add an option, add a field; the
face of the package (`gwq_export.export`) repeats its name and type, and a test compares the two.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

StrPath = str | Path
GROUPS = ["Size and types", "Model and calibration", "The run", "Beside the file"]
_SIZE, _CALIBRATION, _RUN, _BESIDE = GROUPS
DEFAULT_BPW = 4.5  # bits per weight of the whole file


def fraction(text: str) -> float:
    """A fraction of 1, as "0.01" or "1%". Raises argparse.ArgumentTypeError."""
    try:
        return float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _row(
    group: str,
    help: str,
    metavar: str | None = None,
    kind: Callable[[str], Any] | str = str,
    changes_work: bool = True,
    short: str | None = None,
) -> dict[str, Any]:
    """What the table says of an option beside its name, type and default.

    kind: what turns the text of a flag into a value, or "switch", "off" (a switch that is on by
    default, and that --no-NAME turns off) or "list" (the flag may be given several times).
    changes_work: whether another value asks for other results in the work folder. short: a flag of
    one letter that means the same.
    """
    return {
        "group": group,
        "help": help,
        "metavar": metavar,
        "kind": kind,
        "changes_work": changes_work,
        "short": short,
    }


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a model is exported. Fields are named like the flags of `gwq-export`."""

    type: str | None = field(
        default=None,
        metadata=_row(
            _SIZE,
            "one type for all of the decoder's linear layers: gwq6, gwq5, gwq4, gwq3, gwq2, q8_0,"
            " q4_0, iq4_nl, f16, bf16, f32, or bridge: a ggml type with FP16 deltas behind it"
            " (docs/bridge.md)",
        ),
    )
    bpw: float | None = field(
        default=None,
        metadata=_row(
            _SIZE,
            "bits per weight of the whole file: choose type and outliers of every matrix under this"
            " budget (default, where no other option names types or size: 4.5)",
            metavar="B",
            kind=float,
        ),
    )
    size: str | int | None = field(
        default=None,
        metadata=_row(
            _SIZE,
            "the same by size: 640MiB, 1.2GB or a number of bytes",
            metavar="BYTES",
        ),
    )
    outliers: float | None = field(
        default=None,
        metadata=_row(
            _SIZE,
            "fraction of each matrix that stays FP16, such as 0.01 or 1%% (default: 0.0025; preset"
            " paper: 0.01)",
            metavar="F",
            kind=fraction,
        ),
    )
    saliency: str | None = field(
        default=None,
        metadata=_row(
            _SIZE,
            "rule that picks these weights: loss (default), grad (|gradient|, as in GWQ), fisher,"
            " hessian, magnitude, ...",
            metavar="NAME",
        ),
    )
    preset: str = field(
        default="default",
        metadata=_row(_SIZE, "default, or paper: the published recipe", metavar="NAME"),
    )
    tensor_type: Sequence[str] = field(
        default=(),
        metadata=_row(
            _SIZE,
            "type of the matrices whose GGUF name matches; later ones win",
            metavar="REGEX=TYPE",
            kind="list",
        ),
    )
    exclude: Sequence[str] = field(
        default=(),
        metadata=_row(
            _SIZE,
            "matrices whose GGUF name matches stay F16, whatever else is asked for",
            metavar="REGEX",
            kind="list",
        ),
    )
    stock: str | None = field(
        default=None,
        metadata=_row(
            _SIZE,
            "in place of --type: llama.cpp's own q4_0 or iq4_nl, with scales and codes chosen by"
            " the calibration",
            metavar="TYPE",
        ),
    )
    tune: int | None = field(
        default=None,
        metadata=_row(
            _SIZE,
            "steps that tune scales, tables, outliers and norms in the end, of 1024 tokens each; 0"
            " for none (default: below 4 bits, one for every 7168 calibration tokens)",
            metavar="N",
            kind=int,
        ),
    )
    fast: bool = field(
        default=False,
        metadata=_row(
            _SIZE,
            "a faster export of a file that is further from the model: matrices do not make up for"
            " errors of their other rows and of matrices before them",
            kind="switch",
        ),
    )
    norms: bool = field(
        default=True,
        metadata=_row(_SIZE, "former name of --tune 0", kind="off"),
    )
    base: StrPath | None = field(
        default=None,
        metadata=_row(
            _CALIBRATION,
            "take the weights from this GGUF file, and everything else from MODEL, the folder of"
            " the same model",
            metavar="FILE.gguf",
        ),
    )
    lora: StrPath | None = field(
        default=None,
        metadata=_row(
            _CALIBRATION,
            "folder of a LoRA adapter (PEFT) that is added to the weights when they are read",
            metavar="DIR",
        ),
    )
    revision: str | None = field(
        default=None, metadata=_row(_CALIBRATION, "hub revision of the model")
    )
    tokenizer_pre: str | None = field(
        default=None,
        metadata=_row(
            _CALIBRATION,
            "name of the pre-tokenizer to write where it is not recognised",
            metavar="NAME",
        ),
    )
    calib: Sequence[StrPath] = field(
        default=(),
        metadata=_row(
            _CALIBRATION,
            "calibration text, UTF-8, or .jsonl with a chat in every line (default: a bundled"
            " text); several are read one after another",
            metavar="FILE",
            kind="list",
        ),
    )
    samples: int | None = field(
        default=None,
        metadata=_row(
            _CALIBRATION,
            "calibration samples (default: 32; preset paper: 1)",
            metavar="N",
            kind=int,
        ),
    )
    ctx: int | None = field(
        default=None,
        metadata=_row(
            _CALIBRATION,
            "tokens per calibration sample (default: 512, or the model's context if that is less)",
            metavar="N",
            kind=int,
            short="-c",
        ),
    )
    seed: int = field(
        default=0,
        metadata=_row(
            _CALIBRATION, "seed of the draw of samples, and of random rules", metavar="N", kind=int
        ),
    )
    device: str = field(
        default="cpu",
        metadata=_row(_RUN, "where gradients are computed: cpu (default) or cuda", metavar="NAME"),
    )
    threads: int | None = field(
        default=None,
        metadata=_row(
            _RUN,
            "CPU threads (default: as many CPUs as this process may use); the bytes do not depend"
            " on it",
            metavar="N",
            kind=int,
            changes_work=False,
            short="-t",
        ),
    )
    work_dir: StrPath | None = field(
        default=None,
        metadata=_row(
            _RUN,
            "keep what is finished in this folder: after a kill the same command goes on from"
            " there, to the same bytes. Takes the file's size, 4 bytes x calibration tokens x"
            " width x (blocks + 4), and under a budget the statistics; emptied in the end",
            metavar="DIR",
            changes_work=False,
        ),
    )
    dry_run: bool = field(
        default=False,
        metadata=_row(
            _RUN,
            "calibrate and plan; print plan, size, predicted perplexity, time and memory; write no"
            " file",
            kind="switch",
            changes_work=False,
        ),
    )
    imatrix: StrPath | None = field(
        default=None,
        metadata=_row(
            _BESIDE,
            "also write the gradients' importance for llama-quantize --imatrix",
            metavar="FILE.gguf",
        ),
    )
    verify: bool = field(
        default=False,
        metadata=_row(
            _BESIDE,
            "compare the finished file with the model on held-out text",
            kind="switch",
            changes_work=False,
        ),
    )
    verify_text: StrPath | None = field(
        default=None,
        metadata=_row(
            _BESIDE,
            "text for --verify (default: what calibration left of its own)",
            metavar="FILE",
            changes_work=False,
        ),
    )
    max_kld: float | None = field(
        default=None,
        metadata=_row(
            _BESIDE,
            "fail above this KL divergence, nats per token (default: 1.0)",
            metavar="X",
            kind=float,
            changes_work=False,
        ),
    )
    report: StrPath | None = field(
        default=None,
        metadata=_row(
            _BESIDE,
            "write a page on sizes, errors, outliers and quality",
            metavar="FILE.html",
            changes_work=False,
        ),
    )
    report_only: bool = field(
        default=False,
        metadata=_row(
            _BESIDE,
            "no model: what every type would cost each matrix, to --report (.html, .json)",
            kind="switch",
        ),
    )
    card: StrPath | None = field(
        default=None,
        metadata=_row(
            _BESIDE,
            "write a Hugging Face model card with the measured figures",
            metavar="README.md",
            changes_work=False,
        ),
    )

    def __post_init__(self) -> None:
        for name in ("tensor_type", "exclude", "calib"):  # one is a list of one, None of none
            value = getattr(self, name)
            one = isinstance(value, StrPath)
            object.__setattr__(self, name, [value] if one else list(value or ()))

    @property
    def plain(self) -> bool:
        """Whether nothing says how large the file is to be: then DEFAULT_BPW does."""
        sized = (self.type, self.stock, self.bpw, self.size)
        return not self.report_only and self.preset == "default" and sized == (None,) * 4

    @property
    def budgeted(self) -> bool:
        """Whether types and outliers are chosen under a budget."""
        return self.bpw is not None or self.size is not None or self.plain

    @property
    def calibrates(self) -> bool:
        """Whether gradients are needed, whatever the types."""
        return bool(self.budgeted or self.imatrix or self.report_only)

    @property
    def verifies(self) -> bool:
        """Whether the finished file is compared with the model."""
        return self.verify or self.verify_text is not None or self.max_kld is not None

    @property
    def writes_model(self) -> bool:
        """Whether a model file is written."""
        return not self.dry_run and not self.report_only

    def identity(self) -> dict[str, Any]:
        """{name: value} of the options that results in a work folder depend on."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.metadata["changes_work"]}
