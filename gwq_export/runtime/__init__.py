"""Runs a file: weights, KV cache, one forward function, sampling, chat. Never imports torch.

Modules import only those listed above them:
    layers
    states
    kv_cache
    moe
    page_cache
    guard
    buffers
    placement
    table
    weights
    logits
    forward
    session
    pace
    lookup
    draft
    decoding
    sampling
    model
    chat
    devices
"""
