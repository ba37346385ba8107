import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest


pytestmark = pytest.mark.any_trl


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not installed (extra: dev)")
@pytest.mark.parametrize("command", [("check",), ("format", "--check")], ids=" ".join)
def test_the_tree_is_in_style(command):
    result = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--no-cache", "."],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
