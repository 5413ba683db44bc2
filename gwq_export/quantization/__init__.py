"""Statistics and a recipe in, bytes out. Pure functions of their arguments.

Modules import only those listed above them:
    saliency
    recipe
    curvature
    lanes
    feedback
    matrix_codes
    tile_codes
    ggml_codes
    encoder
    deltas
    quantize
    allocate
    loss_model
"""
