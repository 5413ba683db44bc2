"""gwq-export: gradient-aware low-bit quantization of Hugging Face models to GGUF, and the runtime that reads it.

    gwq_export.export("model_folder", "model.gguf", type="gwq4")
    model = gwq_export.load("model.gguf")
    print(model.generate("Once upon a time", n=32))

Importing this package imports neither torch nor transformers; only `export` does, when it is called.
"""

__version__ = "0.1.0"


class GwqError(ValueError):
    """Something the user can mend. The message is one sentence that says what is wrong and what to do.

    result: what was made and measured all the same, as `--json` prints it, or None.
    """

    result = None


def export(model, out, **options):
    """Quantize the Hugging Face model `model` (folder or hub id) into the GGUF file `out`.

    Keyword arguments are named like the flags of `gwq-export`; see `gwq_export.pipeline.export`.
    Returns what `gwq-export --json` prints. Raises GwqError.
    """
    from gwq_export.pipeline import export

    return export(model, out, **options)


def load(path, device="cpu", threads=None, ctx=None, base=False, cache=None):
    """Open a GGUF file for inference; returns a `gwq_export.generate.Model`. Raises GwqError.

    base: of a bridge file, only the part that stock llama.cpp runs. cache: type of the KV cache: f16 (by default), q8_0 or f32.
    """
    from gwq_export.generate import Model

    return Model(open_gguf(path, base), device=device, threads=threads, ctx=ctx, cache=cache)


def open_gguf(path, base=False):
    """Open a GGUF file as data; returns a `gwq_export.container.Reader`. base: as for `load`. Raises GwqError."""
    from gwq_export.container import Reader

    return Reader(path, base=base)
