"""Where the figures of a benchmark come from."""

import json
import subprocess
from pathlib import Path
from typing import Any


def commit() -> str:
    """The commit that is checked out, in short."""
    folder = Path(__file__).parent
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def stored_runs(folder: Path) -> list[dict[str, Any]]:
    """What runs have left in a folder, in the order of their names. Without any there is nothing to report, and the
    table of earlier ones stays."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    if not runs:
        raise SystemExit(f"There are no runs in {folder}: run `all` first.")
    return runs
