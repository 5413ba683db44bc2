"""Every tensor of a file: calibrated, quantized, written."""

from gwq_export import GwqError
from gwq_export.calibrate import gradients
from gwq_export.encoder import Curvatures
from gwq_export.plan import weights
from gwq_export.quantize import quantize
from gwq_export.writer import Writer


def write(out, header, layout, extra, entries, source, calibration, device, progress, work, pool):
    """Quantize and write every tensor: those that need gradients block by block as these appear, then the others.

    extra: {name: array} of what is written as it is. What `work` holds of an earlier run is not quantized again.
    """
    calibrated = {e.source: e for e in entries if e.recipe.statistics}
    others = [e for e in entries if not e.recipe.statistics]
    with Writer(out, header, layout) as writer:
        for name, array in extra.items():
            writer.write(name, array)
        finished = set()
        for e in entries:
            if parts := work.get(e.name):  # of an earlier run
                _put(writer, e, parts)
                finished.add(e.source)
        if calibrated:
            statistics = sorted({s for e in calibrated.values() for s in e.recipe.statistics})
            ends = [e.source for e in calibrated.values() if not e.linear]
            curvatures = Curvatures(calibration.tokens.numel())
            done = lambda name: name in finished or name not in calibrated  # noqa: E731
            for name, weight, found in gradients(source, calibration, statistics, ends, device, progress, work, done):
                _store(writer, work, calibrated[name], encode(pool, calibrated[name], weight, curvatures.put(found)))
                finished.add(name)
        done, total = 0, sum(map(weights, others))
        progress("write", done, total)
        for entry in others:
            if entry.source not in finished:
                _store(writer, work, entry, encode(pool, entry, read(source, entry), {}))
            done += weights(entry)
            progress("write", done, total)


def read(source, entry):
    """The weight of an entry, float32."""
    return source.tensor(entry.source).numpy()


def encode(pool, entry, weight, statistics):
    """The bytes of an entry's tensors."""
    try:
        return quantize(entry.arrange.weight(weight), entry.arrange.statistics(statistics), entry.recipe, pool.ptr)
    except GwqError as e:
        raise GwqError(f"{entry.name}: {e}") from None


def _store(writer, work, entry, parts):
    work.save(entry.name, *parts)
    _put(writer, entry, parts)


def _put(writer, entry, parts):
    for (name, _, _), data in zip(entry.recipe.tensors(entry.name, entry.shape), parts, strict=True):
        writer.write(name, data)
