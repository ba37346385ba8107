"""Real data that lies in a folder `shared/data` beside the checkout; tests that read it are skipped elsewhere."""

from pathlib import Path

import pytest


SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def shared_file(name: str) -> Path:
    """The file, or the running test is skipped."""
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not in shared/data beside the checkout")
    return path
