"""Every tensor of a file: calibrated, quantized, written."""

import numpy as np

from gwq_export.calibration.gradients import gradients
from gwq_export.errors import GwqError
from gwq_export.format.reader import Reader
from gwq_export.format.writer import Writer
from gwq_export.pipeline.norm_tuning import is_norm, tune
from gwq_export.pipeline.plan import weights
from gwq_export.quantization.curvature import Curvatures
from gwq_export.quantization.quantize import quantize


def write(
    out,
    header,
    layout,
    extra,
    entries,
    source,
    calibration,
    device,
    progress,
    work,
    pool,
    tuned=False,
):
    """Quantize and write every tensor: those that need gradients block by block as these appear,
    then the others.

    extra: {name: array} of what is written as it is. What `work` holds of an earlier run is not
    quantized again. tuned: tune the norms in the end; returns the KL divergence that `norms.tune`
    found, or None.
    """
    calibrated = {
        hf: (e, j) for e in entries if e.recipe.statistics for j, hf in enumerate(e.sources)
    }
    norms = [e for e in entries if tuned and is_norm(e.name)]
    others = [e for e in entries if not e.recipe.statistics and e not in norms]
    with Writer(out, header, layout) as writer:
        for name, array in extra.items():
            writer.write(name, array)
        finished = set()
        for e in entries:
            for j, hf in enumerate(e.sources):
                if parts := work.get(hf):  # of an earlier run
                    _put(writer, e, j, parts)
                    finished.add(hf)
        if calibrated:
            statistics = sorted({s for e, _ in calibrated.values() for s in e.recipe.statistics})
            ends = [hf for hf, (e, _) in calibrated.items() if not e.linear]
            curvatures = Curvatures(calibration.tokens.numel())
            done = lambda name: name in finished or name not in calibrated  # noqa: E731
            for name, weight, found in gradients(
                source, calibration, statistics, ends, device, progress, work, done, tuned
            ):
                entry, j = calibrated[name]
                parts = encode(
                    pool, entry, weight, curvatures.put(found, calibration.reached.get(name))
                )
                _store(writer, work, entry, j, parts)
                finished.add(name)
        done, total = 0, sum(map(weights, others))
        progress("write", done, total)
        for entry in others:
            for j, hf in enumerate(entry.sources):
                if hf not in finished:
                    _store(writer, work, entry, j, encode(pool, entry, read(source, hf), {}))
            done += weights(entry)
            progress("write", done, total)
        if not norms:
            return None
        with Reader(writer.part) as reader:
            target = work.get(f"state.{source.layers}")[0]
            factors, kld = tune(
                source,
                reader,
                entries,
                calibration.tokens,
                target,
                device,
                progress,
                work.section("norms"),
            )
        for entry in norms:
            weight = entry.arrange.weight(read(source, entry.sources[0])) * factors.get(
                entry.sources[0], np.float32(1)
            )
            _put(writer, entry, 0, quantize(weight, {}, entry.recipe))
        return kld


def read(source, hf):
    """A matrix of the checkpoint, float32."""
    return source.tensor(hf).numpy()


def encode(pool, entry, weight, statistics):
    """The bytes of an entry's tensors, or an expert's part of them, from its matrix."""
    try:
        return quantize(
            entry.arrange.weight(weight),
            entry.arrange.statistics(statistics),
            entry.recipe,
            pool.ptr,
        )
    except GwqError as e:
        raise GwqError(f"{entry.name}: {e}") from None


def _store(writer, work, entry, j, parts):
    work.save(entry.sources[j], *parts)
    _put(writer, entry, j, parts)


def _put(writer, entry, j, parts):
    """Write the j-th matrix of an entry."""
    for (name, _, _), data in zip(
        entry.recipe.tensors(entry.name, entry.shape), parts, strict=True
    ):
        writer.write(name, data, j, len(entry.sources))
