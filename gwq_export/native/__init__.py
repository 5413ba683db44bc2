"""The C library from Python. `native/build.py` puts libgwq.so and its headers into this folder.

Modules import only those listed above them:
    library
    ops
    matrix
    recorder
    joining
    program
"""

from gwq_export.machine import default_threads  # noqa: F401, those of a Pool
