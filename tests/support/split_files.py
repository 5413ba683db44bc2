"""GGUF files in parts, as llama-gguf-split writes them."""

import numpy as np

import gwq_export
from gwq_export.format.writer import Writer


def split(path, folder, groups, name="m", keys=None):
    """Write the tensors of the file `path` as parts NAME-0000i-of-0000n.gguf; returns their paths.

    groups: a list of names of tensors for each part but the last, which takes the rest. keys:
    {part, counted from 0: {key: value}} to replace, None: to leave out.
    """
    reader = gwq_export.open_gguf(path)
    rest = [n for n in reader.tensors if not any(n in group for group in groups)]
    groups = [*groups, rest]
    paths = []
    for no, group in enumerate(groups):
        values = {key: reader.metadata[key] for key in reader.metadata} if no == 0 else {}
        values |= {
            "split.no": np.uint16(no),
            "split.count": np.uint16(len(groups)),
            "split.tensors.count": np.int32(len(reader.tensors)),
        } | (keys or {}).get(no, {})
        values = {key: value for key, value in values.items() if value is not None}
        tensors = [reader.tensors[n] for n in group]
        out = folder / f"{name}-{no + 1:05}-of-{len(groups):05}.gguf"
        with Writer(out, values, [(t.name, t.type, t.shape) for t in tensors]) as writer:
            for t in tensors:
                writer.write(t.name, t.data)
        paths.append(out)
    return paths
