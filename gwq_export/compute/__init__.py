"""Long computations: on several CPUs, with results that survive a kill.

Modules import only those listed above them:
    threads
    products
    linalg
    results
    scratch
"""
