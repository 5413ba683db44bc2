"""How much a forward pass writes beside its KV cache."""

from gwq_export.arch.config import Config

# Tokens of a prompt computed at once: whole panels of the kernels, and so few that what an
# operation writes is in a cache when the next one reads it. With 512, decoder blocks of a model of
# 1.1 billion weights took 15 % longer.
BATCH = 192


def widths(c: Config) -> dict[str, int]:
    """{name of a work buffer: floats of a token}."""
    wide = max(c.dim, c.dims["q"])  # h and q hold activations of either width
    ffn = c.expert_ffn if c.experts else c.ffn
    if any(row.gguf == "ffn_up_shexp.weight" for row in c.arch.block):
        ffn = max(ffn, c.shared_ffn)
    kv = c.dims["kv"]
    return {"x": c.dim, "h": wide, "q": wide, "k": kv, "v": kv, "gate": ffn, "up": ffn}
