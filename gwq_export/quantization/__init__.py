"""Statistics and a recipe in, bytes out. Pure functions of their arguments.

Modules import only those listed above them:
    saliency
    recipe
    curvature
    encoder
    deltas
    quantize
    allocate
    loss_model
"""
