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


def require_runs(folder: Path) -> list[Path]:
    """The files that runs have left in a folder, by name. Without any there is nothing to report, and the table of
    earlier ones stays."""
    if not (files := sorted(folder.glob("*.json"))):
        raise SystemExit(f"There are no runs in {folder}: run `all` first.")
    return files


def stored_runs(folder: Path) -> list[dict[str, Any]]:
    """What runs have left in a folder, see [`require_runs`]."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in require_runs(folder)]
