"""From a text to statistics of every matrix.

Modules import only those listed above them:
    sources
    text
    linear
    moe_modules
    block_model
    block_pass
    labels
    statistics
    gradients
    drift
"""
