"""Measurements behind docs/results, each one command: studies/NAME is a link to studies/run."""
