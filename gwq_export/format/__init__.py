"""The bytes of a GGUF file: tensor types, header, tensors, reader and writer.

Modules import only those listed above them:
    types
    ggml_types
    outliers
    blocks
    tiles
    decoding
    header
    layout
    bridge
    tensor
    mapped
    split
    reader
    header_bytes
    writer
    foreign
"""
