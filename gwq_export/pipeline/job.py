"""Everything that an export knows before the first gradient: model, plan, tokens, header.

Nothing here takes long, so what the user can mend is found here.
"""

import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gwq_export.calibration.sources import Encoder, Text, read_calibration
from gwq_export.calibration.text import (
    Calibration,
    draw_calibration,
    draw_held_out,
    draw_tuning,
)
from gwq_export.compute.results import Memory, Workdir
from gwq_export.compute.scratch import Scratch
from gwq_export.errors import GwqError
from gwq_export.files import check_space
from gwq_export.format import bridge
from gwq_export.format.types import TYPES, TensorType
from gwq_export.format.writer import file_size
from gwq_export.hf.hub import commit
from gwq_export.hf.opened import open_model
from gwq_export.hf.source import Source
from gwq_export.pipeline.budget import check_budget, within_reach
from gwq_export.pipeline.checks import check_options
from gwq_export.pipeline.options import ExportOptions, StrPath
from gwq_export.pipeline.plan import TensorPlan, plan_tensors
from gwq_export.pipeline.presets import budget_bytes, overrides_of, recipe_of
from gwq_export.pipeline.provenance import general_keys, provenance_keys
from gwq_export.pipeline.statistics_store import store_bytes
from gwq_export.pipeline.tuning_steps import WINDOWS, check_steps, default_steps, windows_wanted
from gwq_export.quantization.recipe import Recipe
from gwq_export.tokenizer.tokenizer import Tokenizer
from gwq_export.version import __version__

log = logging.getLogger("gwq_export")

CTX = 512  # tokens of a calibration sample, unless asked for
# Of what lies in a work folder. A folder of another layout is refused like another export's.
WORK_LAYOUT = 5
DRIFT_WINDOWS = 0.5  # share of the calibration's; more take longer than they are worth
# Forward passes that measuring drift on a window takes the time of: two streams, each through a
# block once and, for every input in it, up to there
DRIFT_PASSES = 4.3


@dataclass
class Job:
    """An export that is ready to begin. `plans` and `header` change as it goes on."""

    model: StrPath  # as the user called it
    out: StrPath | None
    options: ExportOptions
    source: Source
    files: list[tuple[str, int, int]]  # of the source, when it was opened
    name: str  # of the model, for the file's keys and the report
    recipe: Recipe  # of the decoder's linears, before a budget chooses
    plans: list[TensorPlan]  # of every tensor, in file order
    budget: int | None  # bytes of the file
    header: dict[str, Any]  # GGUF keys
    rope: dict[str, np.ndarray]  # rope factor tensors, float32, written as they are
    calibration: Calibration | None
    held_out: np.ndarray | None  # int64 (windows, ctx), to verify the file on
    tune_steps: int  # of tuning, if it comes to that
    tune_tokens: torch.Tensor | None  # int64 (windows, ctx), for them

    @property
    def coded(self) -> list[TensorPlan]:
        """Plans of the tensors whose codes are searched for."""
        return [p for p in self.plans if p.recipe.encoded]

    def layout(
        self, plans: Sequence[TensorPlan] | None = None
    ) -> list[tuple[str, TensorType, tuple[int, ...]]]:
        """[(name, type, shape)] of every tensor of the file, side-tables included."""
        tensors = [
            (name, TYPES[kind], shape)
            for p in (self.plans if plans is None else plans)
            for name, kind, shape in p.recipe.tensors(p.name, p.shape)
        ]
        return tensors + [(name, TYPES["f32"], array.shape) for name, array in self.rope.items()]

    def file_bytes(self, plans: Sequence[TensorPlan] | None = None) -> int:
        """Bytes of the whole file."""
        return file_size(self.header, self.layout(plans))

    @property
    def drifting(self) -> set[str]:
        """Hugging Face names of the matrices that are coded for inputs as the file has them."""
        return {hf for p in self.plans if p.drifts and self.calibration for hf in p.sources}

    def give_drift_up(self) -> None:
        """Code every matrix for the inputs that it has in the model."""
        self.plans = [replace(p, recipe=replace(p.recipe, drift=False)) for p in self.plans]
        self.recipe = replace(self.recipe, drift=False)
        self.header |= _made_how(self)

    @property
    def drift_tokens(self) -> torch.Tensor | None:
        """The calibration's windows on which drift is measured."""
        if self.calibration is None:
            return None
        tokens = self.calibration.tokens
        return tokens[: math.ceil(DRIFT_WINDOWS * len(tokens))]

    @property
    def states_bytes(self) -> int:
        """Bytes of the hidden states before, between and after the blocks, and their gradient."""
        if self.calibration is None:
            return 0
        tokens = self.calibration.tokens.numel()
        return (self.source.layers + 4) * tokens * self.source.dims["dim"] * 4

    def check_source(self) -> None:
        """Raise GwqError when a file of the model is no longer the one that was opened."""
        before, now = ({name: state for name, *state in f} for f in (self.files, self.source.files))
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                raise GwqError(
                    f"{name} of {self.model} was changed while it was exported: "
                    "run the same command again, and leave the model alone until it is done"
                )

    @contextmanager
    def of_one_source(self) -> Iterator[None]:
        """Say of what goes wrong in this block that the model was changed, where it was."""
        try:
            yield
        except GwqError:
            self.check_source()
            raise

    def open_work(self) -> Memory:
        """Where results go: the work folder, or the disk of the output, or memory if that is full.

        Raises GwqError.
        """
        if self.options.work_dir:
            return Workdir(self.options.work_dir, self._identity())
        place = Path(self.out or "").absolute().parent
        kept = self.options.budgeted or self.drifting
        statistics = store_bytes(self.plans) if kept else 0
        needed = (self.budget or self.file_bytes()) + self.states_bytes + statistics
        return Scratch(place) if needed < shutil.disk_usage(place).free else Memory()

    def _identity(self) -> dict[str, Any]:
        """What a work folder must agree with: whatever decides the bytes that come out."""
        return {
            "model": self.model,
            "options": self.options.identity(),
            "versions": {
                "gwq-export": __version__,
                "torch": torch.__version__,
                "work folder": WORK_LAYOUT,
            },
            "files": self.files,
            "calibration": self.calibration and self.calibration.hash,
        }

    def check_space(self, work: Memory) -> None:
        """Raise GwqError when the disks have no room for what this export is going to write."""
        nbytes = self.budget or self.file_bytes()
        wanted = []
        if self.options.writes_model:
            wanted.append((Path(self.out or "").absolute().parent, nbytes, str(self.out)))
            if self.options.imatrix:
                linear = sum(p.shape[-1] * len(p.sources) for p in self.plans if p.linear)
                folder = Path(self.options.imatrix).absolute().parent
                wanted.append((folder, 4 * linear, str(self.options.imatrix)))
        if isinstance(work, Workdir):
            tensors = nbytes if self.options.writes_model else 0
            needed = max(0, self.states_bytes + tensors - work.nbytes)
            wanted.append((work.folder, needed, f"--work-dir {work.folder}"))
        check_space(wanted)


def prepare(model: StrPath, out: StrPath | None, options: ExportOptions) -> Job:
    """The Job of an export. Raises GwqError for everything that can be known to be wrong by now."""
    check_options(options, model, out)
    recipe, samples = recipe_of(options)
    overrides = overrides_of(options)
    _check_device(options.device)
    opened = open_model(model, options.base, options.revision, options.tokenizer_pre, options.lora)
    source = opened.source
    files = source.files
    ctx = _context(options.ctx, source)
    plans = plan_tensors(source, recipe, overrides)
    check_steps(plans, options.tune)
    budget = budget_bytes(options, sum(p.weights for p in plans))
    tokenizer = Tokenizer(opened.keys)
    calibrates = options.calibrates or any(p.recipe.statistics for p in plans)
    reads = calibrates or options.verifies
    text = read_calibration(tokenizer, options.calib) if reads else Text([], None)
    calibration = draw_calibration(text, samples, ctx, options.seed) if calibrates else None
    steps = _steps(options, calibration)
    type_name = "mixed" if options.budgeted else recipe.type.name
    job = Job(
        model=model,
        out=out,
        options=options,
        source=source,
        files=files,
        name=opened.name,
        recipe=recipe,
        plans=plans,
        budget=budget,
        header=general_keys(source, opened.name, type_name) | opened.keys,
        rope=opened.rope,
        calibration=calibration,
        held_out=_draw_held_out(options, tokenizer, text, calibration, ctx),
        tune_steps=steps,
        tune_tokens=_draw_tuning(options, text, calibration, steps),
    )
    job.header |= _made_how(job)
    if budget is not None:
        reach = within_reach(plans, options.outliers, job.file_bytes)
        if options.plain:
            job.budget = min(max(budget, reach.smallest), reach.largest)
            job.header |= _made_how(job)
        else:
            check_budget(budget, reach)
    return job


def _check_device(name: str) -> None:
    if name == "cuda" and not torch.cuda.is_available():
        raise GwqError("--device cuda: torch finds no CUDA device here; use --device cpu")
    if name not in ("cpu", "cuda"):
        raise GwqError(f"--device {name}: choose cpu or cuda")


def _context(asked: int | None, source: Source) -> int:
    """Tokens of a calibration sample: what --ctx asks for, or CTX, cut to the model's context."""
    limit = source.dims["ctx"]
    if asked is not None and asked > limit:
        log.warning("--ctx %d is longer than the model's context: cut to %d", asked, limit)
    return min(CTX if asked is None else asked, limit)


def _draw_held_out(
    options: ExportOptions,
    tokenizer: Encoder,
    text: Text,
    calibration: Calibration | None,
    ctx: int,
) -> np.ndarray | None:
    """Windows of --verify-text, else of the calibration's text that it left, to verify on."""
    if not options.verifies:
        return None
    if options.verify_text is None:
        return draw_held_out(text, calibration, ctx, options.seed)
    other = read_calibration(tokenizer, [options.verify_text], "--verify-text")
    return draw_held_out(other, None, ctx, options.seed)


def _steps(options: ExportOptions, calibration: Calibration | None) -> int:
    """How many steps of tuning there are, if any."""
    if calibration is None or not options.norms:
        return 0
    return default_steps(calibration.tokens.numel()) if options.tune is None else options.tune


def _draw_tuning(
    options: ExportOptions, text: Text, calibration: Calibration | None, steps: int
) -> torch.Tensor | None:
    """Windows for so many steps, None where they are too few."""
    if calibration is None or not steps:
        return None
    count = windows_wanted(steps, calibration.tokens.shape[1])
    tokens = draw_tuning(text, calibration, count, options.seed)
    return tokens if len(tokens) >= WINDOWS else None


def _made_how(job: Job) -> dict[str, Any]:
    """`gwq.*` keys of the header."""
    keys: dict[str, Any] = {}
    if job.coded and job.recipe.type.levels and job.recipe.outliers:
        keys[bridge.VERSION_KEY] = np.uint32(bridge.VERSION)
    if job.coded:
        keys |= provenance_keys(
            job.recipe,
            job.calibration,
            preset=job.options.preset,
            seed=job.options.seed,
            source_name=job.name,
            budget_bytes=job.budget,
            source_revision=commit(job.source.folder),
            tuning_steps=np.uint32(0),  # until it is known
        )
    return keys | {f"gwq.{key}": value for key, value in job.source.provenance.items()}
