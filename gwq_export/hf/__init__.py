"""Hugging Face folders, both ways. torch and safetensors are imported inside functions only.

Modules import only those listed above them:
    hub
    text_part
    model_class
    shards
    lora
    model_config
    strangers
    source
    gguf_checkpoint
    gguf_source
    rope_to_gguf
    config_to_gguf
    config_from_gguf
    gguf_model
    opened
    restore
"""
