"""Checkpoints whose weights come quantized: which tensors make a matrix, and what it stands for.

torch is imported inside functions only. Modules import only those listed above them:
    scheme
    scales
    bits
    fp8
    fp4
    gptq
    awq
    compressed
    bitsandbytes
    methods
    coded
"""
