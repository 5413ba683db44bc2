"""How much a forward pass writes beside its KV cache."""

from gwq_export.arch.config import Config

# Tokens of a prompt computed at once: whole panels of the kernels, and so few that what an
# operation writes is in a cache when the next one reads it. With 512, decoder blocks of a model of
# 1.1 billion weights took 15 % longer.
BATCH = 192
# On a device: 64 tokens and 128 rows are a block of threads, so that 512 tokens of the smallest
# matrices of a 7B model are two blocks for each of a large GPU's multiprocessors.
DEVICE_BATCH = 512


def has_shared_expert(c: Config) -> bool:
    """Whether an expert of all tokens stands beside those that are chosen."""
    return any(row.gguf == "ffn_up_shexp.weight" for row in c.arch.block)


def widths(c: Config) -> dict[str, int]:
    """{name of a work buffer: floats of a token}."""
    wide = max(c.dim, c.dims["q"])  # h and q hold activations of either width
    ffn = c.expert_ffn if c.experts else c.ffn
    if has_shared_expert(c):
        ffn = max(ffn, c.shared_ffn)
    kv = c.dims["kv"]
    found = {"x": c.dim, "h": wide, "q": wide, "k": kv, "v": kv, "gate": ffn, "up": ffn}
    if any(row.gguf == "attn_gate.weight" for row in c.arch.block):
        found["gates"] = c.heads
    return found | ({"conv": c.dims["conv_in"]} if "conv" in c.kinds else {})
