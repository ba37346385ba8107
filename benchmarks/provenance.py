"""Where the figures of a benchmark come from."""

import subprocess
from pathlib import Path


def commit() -> str:
    """The commit that is checked out, in short."""
    folder = Path(__file__).parent
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
