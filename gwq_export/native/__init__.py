"""The C library from Python. `native/build.py` puts libgwq.so and its headers into this folder,
`native/build_cuda.py` libgwq_cuda.so, if there is one.

Modules import only those listed above them:
    library
    maps
    ops
    spans
    matrix
    cuda
    recorder
    joining
    program
    image
"""

from gwq_export.machine import default_threads  # noqa: F401, those of a Pool
