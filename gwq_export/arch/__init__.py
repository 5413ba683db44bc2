"""What an architecture is: its tensors, config keys and arithmetic, as data. One file per family.

Modules import only those listed above them:
    parts
    spec
    llama
    moe
    phi
    gemma
    gpt
    cohere
    glm
    lfm
    registry
    layout
    rope
    keys
    config
"""
