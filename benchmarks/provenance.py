"""Where the figures of a benchmark come from."""

import json
import subprocess
from pathlib import Path
from typing import Any

from trl_tokenreward.utils.files import write_text


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


def stored_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """What runs have left in a folder, by name; see [`require_runs`]."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in require_runs(folder)}


def kept_runs(table: Path) -> dict[str, dict[str, Any]]:
    """The runs of earlier reports, by name. They lie beside the table, in JSON lines."""
    path = table.with_suffix(".jsonl")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {run.pop("name"): run for run in map(json.loads, lines)}


def with_kept(table: Path, runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Runs by name, and those of earlier reports, whose folder may be gone. All are kept, so that a table of hours of
    work can grow by a seed on another machine.

    Args:
        table (`Path`):
            The Markdown that the report writes.
        runs (`dict[str, dict]`):
            Those of the folder. They replace kept ones of their names. Their `log` is not kept.
    """
    new = {name: {key: value for key, value in run.items() if key != "log"} for name, run in runs.items()}
    kept = dict(sorted((kept_runs(table) | new).items()))
    lines = [json.dumps({"name": name, **run}, separators=(",", ":")) for name, run in kept.items()]
    write_text(table.with_suffix(".jsonl"), "\n".join(lines) + "\n")
    return kept


def all_runs(table: Path, folder: Path) -> list[dict[str, Any]]:
    """The runs of a folder, and those of earlier reports, see [`with_kept`]."""
    return list(with_kept(table, stored_runs(folder)).values())
