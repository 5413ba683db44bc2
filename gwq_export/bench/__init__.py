"""Speed of files and of kernels, against the memory roof and against other engines.

Modules import only those listed above them:
    roof
    cases
    kernels
    files
    worker
    contender
    starts
    runs
    models
    ops_profile
    tables
    schema
    document
    sustained
    suite
    record
    compare
"""
