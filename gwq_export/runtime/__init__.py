"""Runs a file: weights, KV cache, one forward function, sampling, chat. Never imports torch.

Modules import only those listed above them:
    layers
    moe
    page_cache
    guard
    weights
    kv_cache
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
