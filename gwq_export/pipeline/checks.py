"""Which options of an export cannot be together, and which output names cannot be written."""

from collections.abc import Iterable
from pathlib import Path

from gwq_export.errors import GwqError
from gwq_export.files import check_output
from gwq_export.machine import MAX_THREADS
from gwq_export.pipeline.options import ExportOptions, StrPath


def check_options(options: ExportOptions, model: StrPath, out: StrPath | None) -> None:
    """Raise GwqError for options that contradict each other, or for unusable output names."""
    for is_so, sentence in _contradictions(options, out):
        if is_so:
            raise GwqError(sentence)
    outputs = _outputs(options, out)
    others = [("MODEL", model), ("--base", options.base)]
    others += [("--verify-text", options.verify_text), ("--work-dir", options.work_dir)]
    others += [("--calib", path) for path in options.calib]
    for i, (flag, path) in enumerate(outputs):
        for other, name in [*outputs[:i], *others]:
            if _same_file(path, name):
                raise GwqError(
                    f"{flag} {path}: that is the file of {other} too; give {flag} another name"
                )
        check_output(path, flag)


def _outputs(options: ExportOptions, out: StrPath | None) -> list[tuple[str, StrPath]]:
    """(flag, path) of every file that this export writes, in a folder that is there."""
    named = [("--out", out)] if options.writes_model else []
    if options.writes_model:
        named.append(("--imatrix", options.imatrix))
    named += [("--report", options.report), ("--card", options.card)]
    return [(flag, path) for flag, path in named if path is not None]


def _contradictions(o: ExportOptions, out: StrPath | None) -> Iterable[tuple[bool, str]]:
    """(whether it is so, what is wrong and what to do), the first of which is reported."""
    typed = o.type is not None or o.stock is not None or o.preset != "default"
    yield (
        o.budgeted and typed,
        "--bpw and --size choose the types themselves: leave out --type, --stock and --preset, or"
        " fix tensors with --tensor-type",
    )
    yield (
        bool(o.tune) and not o.norms,
        f"--no-norms is the former name of --tune 0: leave it out beside --tune {o.tune}",
    )
    yield (
        out is None and not o.report_only,
        "--out FILE.gguf is missing: give the name of the file to write",
    )
    yield (
        o.report_only and bool(o.dry_run or o.verifies or o.card),
        "--report-only writes no model: leave out --dry-run, --verify and --card",
    )
    yield (
        o.dry_run and bool(o.verifies or o.report or o.card or o.imatrix),
        "--dry-run writes nothing: leave out --verify, --report, --card and --imatrix",
    )
    yield (
        o.report_only and bool(o.imatrix),
        "--report-only writes no model: leave out --imatrix",
    )
    yield (
        o.max_kld is not None and not o.max_kld > 0,
        f"--max-kld {o.max_kld}: give a positive number of nats per token",
    )
    yield (
        o.threads is not None and not 1 <= o.threads <= MAX_THREADS,
        f"--threads {o.threads}: give a number from 1 to {MAX_THREADS}",
    )


def _same_file(path: StrPath | None, out: StrPath | None) -> bool:
    return bool(path and out) and Path(path or "").resolve() == Path(out or "").resolve()
