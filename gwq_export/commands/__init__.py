"""One module per command: `parser()` makes its arguments, `command(args, progress)` runs it.

Modules import only those listed above them:
    arguments
    console
    export
    run
    evaluate
    bench_suite
    bench
    info
"""
