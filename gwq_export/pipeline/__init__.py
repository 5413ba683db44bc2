"""The export: which tensors, how each is stored, and everything written.

Modules import only those listed above them:
    options
    plan
    provenance
    estimate
    sensitivity
    norm_tuning
    tensors
    imatrix
    verify
    artifacts
    run
"""
