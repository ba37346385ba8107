"""The tree passes its linters, and is made of pieces that can be read at one go."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


pytestmark = pytest.mark.any_trl

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "trl_tokenreward").rglob("*.py"))
FOLDERS = [path.parent for path in MODULES if path.name == "__init__.py"][1:]  # not the package, which has public names
# ruff has no rule for either: lines of a module, and lines from which on a function needs a docstring.
MOST_LINES, LONG_FUNCTION = 600, 60
LINT_IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"
TOOLS = {
    "ruff": [["-m", "ruff", "check", "--no-cache", "."], ["-m", "ruff", "format", "--check", "--no-cache", "."]],
    "importlinter": [["-c", LINT_IMPORTS, "--no-cache"]],
    "mypy": [["-m", "mypy"]],
}


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_the_tree_passes(tool):
    if importlib.util.find_spec(tool) is None and not os.environ.get("CI"):
        pytest.skip(f"{tool} is not installed (extra: dev)")
    for arguments in TOOLS[tool]:
        result = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_are_short_or_say_why(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_LINES
    for owner in ast.walk(ast.parse(text)):
        for node in ast.iter_child_nodes(owner):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                # A constructor is described by its class.
                documented = ast.get_docstring(owner if node.name == "__init__" else node)
                assert documented or node.end_lineno - node.lineno < LONG_FUNCTION, f"{node.name} needs a docstring"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_says_what_each_of_its_modules_is(folder):
    listed = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert [path.stem for path in folder.glob("[!_]*.py") if f"`{path.stem}`" not in listed] == []
