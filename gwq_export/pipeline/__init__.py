"""The export: which tensors, how each is stored, and everything written.

Modules import only those listed above them:
    options
    flags
    checks
    presets
    plan
    budget
    provenance
    job
    estimate
    sensitivity
    norm_tuning
    tensors
    imatrix
    verify
    artifacts
    run
"""
