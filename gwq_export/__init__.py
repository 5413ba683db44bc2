"""gwq-export: gradient-aware low-bit quantization of Hugging Face models to GGUF, and its runtime.

    gwq_export.export("model_folder", "model.gguf", type="gwq4")
    model = gwq_export.load("model.gguf")
    print(model.generate("Once upon a time", n=32))

Importing this package imports neither torch nor transformers; only `export` does, when it is
called.
"""

from gwq_export.errors import GwqError
from gwq_export.version import __version__

__all__ = ["GwqError", "__version__", "export", "load", "open_gguf"]


def export(model, out, **options):
    """Quantize the Hugging Face model `model` (folder or hub id) into the GGUF file `out`.

    Keyword arguments are named like the flags of `gwq-export`; see
    `gwq_export.pipeline.run.export`. Returns what `gwq-export --json` prints. Raises GwqError.
    """
    from gwq_export.pipeline.run import export

    return export(model, out, **options)


def load(path, device="cpu", threads=None, ctx=None, base=False, cache=None):
    """Open a GGUF file for inference; returns a `gwq_export.runtime.model.Model`. Raises GwqError.

    base: of a bridge file, only the part that llama.cpp runs. cache: type of the KV cache, f16 (the
    default), q8_0 or f32.
    """
    from gwq_export.runtime.model import Model

    return Model(open_gguf(path, base), device=device, threads=threads, ctx=ctx, cache=cache)


def open_gguf(path, base=False):
    """Open a GGUF file as data; returns a `gwq_export.format.reader.Reader`.

    base: as for `load`. Raises GwqError.
    """
    from gwq_export.format.reader import Reader

    return Reader(path, base=base)
