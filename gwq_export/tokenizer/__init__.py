"""What a tokenizer is: from GGUF keys, to GGUF keys, and back to Hugging Face's files.

Modules import only those listed above them:
    pretokenizer
    patterns
    bounds
    build
    budget
    sandbox
    chat_template
    tokenizer
    hf_folder
    special_from_hf
    from_hf
    to_hf
"""
