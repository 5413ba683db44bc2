"""Where the studies find models and texts, and where their pages go."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
REFERENCE = DATA / "gwq-reference"  # the bundled model
SHARED = ROOT.parent / "shared" / "data"  # more models and texts, where a machine has them
RESULTS = ROOT / "docs" / "results"
