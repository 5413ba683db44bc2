"""Fuzzing: mutated GGUF files for the commands, coverage-guided bytes for the native code.

`tools/fuzz` runs it for as long as one likes, tests/system/test_fuzz.py for some seconds.
"""
