"""What a file is: its mixture of types, and how many bytes a token takes."""

import math

from gwq_export.format.header import whole
from gwq_export.format.reader import Reader, Tensor

FLOATS = ("F32", "F16", "BF16")
# general.file_type -> llama.cpp's name of the mixture
FILE_TYPES = {
    **dict(enumerate(["F32", "F16", "Q4_0", "Q4_1"])),
    **dict(enumerate(["Q8_0", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L"], 7)),
    **dict(enumerate(["Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ2_XXS", "IQ2_XS"], 14)),
    **dict(enumerate(["Q2_K_S", "IQ3_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ3_M"], 21)),
    **dict(enumerate(["IQ2_S", "IQ2_M", "IQ4_XS", "IQ1_M", "BF16"], 28)),
    **dict(enumerate(["TQ1_0", "TQ2_0", "MXFP4_MOE", "NVFP4", "Q1_0"], 36)),
}


def decode_bytes(reader: Reader) -> int:
    """Bytes of weights read for one token.

    Every matrix and side-table counts; of the embedding only a row is read, next to nothing, unless
    it is the head too; of the experts as many as a token uses.
    """
    arch = reader.metadata.get("general.architecture")
    used = reader.metadata.get(f"{arch}.expert_used_count", 1)
    experts = reader.metadata.get(f"{arch}.expert_count", 1)
    untied = "output.weight" in reader.tensors

    def read(t: Tensor) -> int:
        if t.name == "position_embd.weight" or (untied and t.name.startswith("token_embd.")):
            return 0  # one row
        if len(t.shape) == 1 and not t.companion:
            return 0  # norms and biases
        return t.nbytes * used // experts if "_exps." in t.name else t.nbytes

    return sum(map(read, reader.tensors.values()))


def model_type(reader: Reader) -> str:
    """Architecture and mixture of types, such as "llama Q4_K_M" or "llama gwq4".

    A file whose mixture llama.cpp has a name for says so itself; a name of plain floats is believed
    only where they are. Of any other file, the types of the blocks' matrices are named that take
    nine tenths of their bytes, the largest first.
    """
    arch = reader.metadata.get("general.architecture")
    mixture = FILE_TYPES.get(whole(reader.metadata, "general.file_type", -1), "")
    nbytes: dict[str, int] = {}
    for t in reader.tensors.values():
        if t.name.startswith("blk.") and len(t.shape) > 1 and not t.companion:
            nbytes[t.type.name] = nbytes.get(t.type.name, 0) + t.nbytes
    names = sorted(nbytes, key=lambda name: -nbytes[name])
    if mixture and (mixture not in FLOATS or mixture.lower() in names[:1]):
        return f"{arch} {mixture}"
    rest = total = sum(nbytes.values())
    named = []
    for name in names:
        if rest > total / 10:
            named.append(name)
            rest -= nbytes[name]
    return f"{arch} {'+'.join(named)}"


def context(reader: Reader) -> int:
    """How many tokens the model's context takes."""
    arch = reader.metadata.get("general.architecture")
    return int(reader.metadata.get(f"{arch}.context_length", 1 << 31))


def params(reader: Reader) -> int:
    """How many weights the model has; those in a side-table are counted once."""
    return sum(math.prod(t.shape) for t in reader.tensors.values() if not t.companion)
