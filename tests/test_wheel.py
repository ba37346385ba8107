"""A wheel, installed by itself, holds the whole package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


pytestmark = [pytest.mark.any_trl, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str, **kwargs) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, **kwargs)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip()


def test_a_wheel_has_every_module_and_file(tmp_path):
    source, installed = tmp_path / "source", tmp_path / "installed"
    # A copy, since a build writes beside its sources.
    shutil.copytree(ROOT / "trl_tokenreward", source / "trl_tokenreward", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(source))
    [wheel] = tmp_path.glob("*.whl")
    run(*pip, "install", "--no-deps", "--no-compile", "--target", str(installed), str(wheel))

    def files(folder: Path) -> set[Path]:
        return {path.relative_to(folder) for path in (folder / "trl_tokenreward").rglob("*") if path.is_file()}

    assert files(installed) == files(source) and len(files(source)) > 100
    code = "import trl_tokenreward; print(trl_tokenreward.__file__, trl_tokenreward.__version__)"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    file, version = run(sys.executable, "-c", code, cwd=tmp_path, env=environment).split()
    assert Path(file).is_relative_to(installed) and f"-{version}-" in wheel.name
