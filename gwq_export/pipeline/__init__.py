"""The export: which tensors, how each is stored, and everything written.

Modules import only those listed above them:
    options
    flags
    checks
    presets
    plan
    budget
    tuning_steps
    provenance
    coding
    statistics_store
    job
    estimate
    sensitivity
    tuned_parts
    tuned_blocks
    tuning
    calibrated
    tensors
    imatrix
    verify
    artifacts
    run
"""
