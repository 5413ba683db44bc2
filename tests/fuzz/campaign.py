"""A folder of fuzzing: counts, seeds, corpora, findings, kept from one run to the next."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Counts:
    """Of one target."""

    runs: int = 0
    refused: int = 0  # of files
    findings: list[str] = field(default_factory=list)  # their files
    seconds: float = 0


class Campaign:
    """A folder, and what was counted in it.

    seeds/: the files to begin with; corpus/TARGET: inputs that reach new code; findings/.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seeds = folder / "seeds"
        self.findings = folder / "findings"
        for path in (self.seeds, self.findings):
            path.mkdir(parents=True, exist_ok=True)
        self.counts = {
            path.stem: Counts(**json.loads(path.read_text()))
            for path in sorted(folder.glob("*.json"))
        }

    def of(self, target: str) -> Counts:
        """The counts of a target."""
        return self.counts.setdefault(target, Counts())

    def corpus(self, target: str) -> Path:
        """The folder of inputs of a native target."""
        path = self.folder / "corpus" / target
        path.mkdir(parents=True, exist_ok=True)
        return path

    def save(self, target: str) -> None:
        """Write the counts of a target down, whole."""
        part = self.folder / f"{target}.{os.getpid()}.part"
        part.write_text(json.dumps(asdict(self.of(target)), indent=1))
        part.replace(self.folder / f"{target}.json")

    def table(self) -> str:
        """All that was counted so far."""
        rows = [("target", "executions", "refused", "findings", "seconds")]
        for name, c in self.counts.items():
            refused = f"{c.refused:,}" if name == "files" else ""
            rows.append((name, f"{c.runs:,}", refused, str(len(c.findings)), f"{c.seconds:.0f}"))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = []
        for name, *rest in rows:
            cells = [x.rjust(width) for x, width in zip(rest, widths[1:], strict=True)]
            lines.append("  ".join([name.ljust(widths[0]), *cells]))
        return "\n".join(lines)
