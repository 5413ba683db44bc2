"""Long work: several CPUs, and results that survive a kill.

Modules import only those listed above them:
    threads
    linalg
    results
"""
