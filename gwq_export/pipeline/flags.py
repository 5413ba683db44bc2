"""The table of options as flags of the command line, and as Markdown for docs/export.md."""

import argparse
from dataclasses import Field, fields
from typing import Any

from gwq_export.pipeline.options import GROUPS, ExportOptions


def flag(option: Field) -> str:
    """The flag of a field of ExportOptions, such as "--work-dir"."""
    prefix = "--no-" if option.metadata["kind"] == "off" else "--"
    return prefix + option.name.replace("_", "-")


def names(option: Field) -> list[str]:
    """All flags of a field of ExportOptions, such as ["-c", "--ctx"]."""
    short = option.metadata["short"]
    return [short, flag(option)] if short else [flag(option)]


def add_arguments(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Add every option to the parser; returns its groups by name."""
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    ways: dict[Any, dict[str, Any]] = {
        "switch": {"action": "store_true"},
        "off": {"action": "store_false"},
        "list": {"action": "append", "default": []},
    }
    for option in fields(ExportOptions):
        kind, metavar = option.metadata["kind"], option.metadata["metavar"]
        how = ways.get(kind, {"type": kind, "default": option.default})
        if metavar:
            how = how | {"metavar": metavar}
        group = groups[option.metadata["group"]]
        group.add_argument(*names(option), dest=option.name, help=option.metadata["help"], **how)
    return groups


def option_page() -> str:
    """The options as Markdown tables, one for each group, for docs/export.md."""
    parts = []
    for group in GROUPS:
        rows = [f"### {group}", "", "| flag | keyword | meaning |", "| --- | --- | --- |"]
        for option in fields(ExportOptions):
            if option.metadata["group"] == group:
                value = f" {option.metadata['metavar']}" if option.metadata["metavar"] else ""
                meaning = option.metadata["help"].replace("%%", "%").replace("|", "\\|")
                flags = ", ".join(f"`{name}{value}`" for name in names(option))
                rows.append(f"| {flags} | `{option.name}` | {meaning} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"
