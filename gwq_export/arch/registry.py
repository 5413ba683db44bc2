"""The list of families. Export reads the Hugging Face side of a row, the runtime its GGUF side."""

from gwq_export.arch import cohere, gemma, glm, gpt, lfm, llama, moe, phi
from gwq_export.arch.spec import Arch

# Hugging Face class name -> row. The order decides which class a GGUF file becomes again.
ARCHS: dict[str, Arch] = {
    name: arch
    for family in (llama, moe, phi, gemma, gpt, cohere, glm, lfm)
    for name, arch in family.ARCHS.items()
}
# What a file says: general.architecture and whether it has experts -> row
ARCH_BY_GGUF: dict[tuple[str, bool], Arch] = {
    (arch.gguf, bool(arch.experts)): arch for arch in ARCHS.values() if not arch.export_only
}
