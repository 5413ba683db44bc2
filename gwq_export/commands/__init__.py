"""One module per command: `parser()` makes its arguments, `command(args, progress)` runs it and returns what --json prints."""
