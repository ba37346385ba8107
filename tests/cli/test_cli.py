"""The command line: what it costs to ask for help, and how errors look."""

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import tiny
from trl_tokenreward import TokenRewardModel, __version__
from trl_tokenreward.cli import main as cli
from trl_tokenreward.utils.loading import load_tokenizer


pytestmark = pytest.mark.any_trl

ROOT = Path(__file__).resolve().parents[2]


def test_help_lists_the_commands_and_loads_nothing_heavy():
    code = """
import sys
from trl_tokenreward.cli.main import main
try:
    main(["--help"])
except SystemExit as stop:
    print("status", stop.code)
print("loaded", sorted({"torch", "transformers", "trl", "datasets", "numpy", "rich"} & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "    import  " in result.stdout and "    inspect  " in result.stdout, result.stderr
    assert result.stdout.endswith("status 0\nloaded []\n")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_and_runs_a_function(name, capsys):
    module = import_module(f"trl_tokenreward.cli.{name}")
    assert callable(module.run)
    with pytest.raises(SystemExit) as stop:
        cli.main([name.rstrip("_"), "--help"])
    assert stop.value.code == 0 and f"trl-tokenreward {name.rstrip('_')}" in capsys.readouterr().out


def test_the_module_runs():
    command = [sys.executable, "-m", "trl_tokenreward", "--version"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (0, f"{__version__}\n")


def test_the_script_and_the_subpackage_are_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = project["project"]["scripts"]["trl-tokenreward"].partition(":")
    assert getattr(import_module(module), function) is cli.main
    assert project["tool"]["setuptools"]["packages"]["find"]["include"] == ["trl_tokenreward*"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "{tmp}/no.txt"], "a file must end in one of"),
        (["inspect", "{tmp}/pairs.jsonl", "--limit", "3"], "--limit has no effect without --output"),
        (["inspect", "{tmp}/pairs.jsonl", "--max-length", "3"], "`max_length` counts tokens"),
        (["inspect", "{tmp}/broken.jsonl"], "broken.jsonl cannot be read: "),
        (["import", "columns", "{tmp}/pairs.jsonl", "{tmp}/out"], "needs the columns `chosen` and `rejected`"),
        (["import", "hh-rlhf", "{tmp}/pairs.jsonl", "{tmp}/out.csv"], "must end in .jsonl or .parquet"),
        (["import", "hh-rlhf", "{tmp}/pairs.jsonl", "{tmp}/pairs.jsonl"], "exists already"),
        (["import", "paradetox", "{tmp}/missing.tsv", "{tmp}/out"], "missing.tsv"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, tmp_path, capsys):
    (tmp_path / "no.txt").touch()
    (tmp_path / "broken.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n{"chosen": \n')
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "", "chosen": "a", "rejected": "b"}\n')
    assert cli.main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"trl-tokenreward {arguments[0]}: error: ") and message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "no.jsonl", "--limit"],
        ["inspect", "no.jsonl", "--max-length"],
        ["score", "model", "--text", "go", "--batch-size"],
        ["score", "model", "--text", "go", "--show"],
        ["score", "model", "--file", "no.jsonl", "--limit"],
        ["export", "argilla", "model", "no.jsonl", "out", "--limit"],
        ["edit", "no.jsonl", "out", "--local", "model", "--max-new-tokens"],
        ["edit", "no.jsonl", "out", "--local", "model", "--limit"],
        ["round", "no.jsonl", "out", "--policy", "p", "--reward-model", "r", "--people", "--rounds"],
    ],
)
def test_a_number_of_none_is_refused_before_anything_is_read(command, capsys):
    for number in ("0", "-1", "1.5", "many"):
        with pytest.raises(SystemExit) as stop:
            cli.main([*command, number])
        assert stop.value.code == 2
        message = f"argument {command[-1]}: must be a whole number of at least 1, but is {number}"
        assert message in capsys.readouterr().err


def test_what_is_not_unicode_or_utf_8_is_named(tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "", "chosen": "a", "rejected": "b"}\n')
    (tmp_path / "latin.txt").write_bytes(b"na\xefve")
    (tmp_path / "latin.csv").write_bytes(b"chosen,rejected\na,b\nna\xefve,c\n")
    (tmp_path / "half.jsonl").write_text('{"chosen": "a", "rejected": "\\ud83d"}\n')
    (tmp_path / "mixed.jsonl").write_text('{"chosen": "a", "rejected": "b", "x": [1.5, "\\udc00", {}]}\n')
    edit = ["edit", f"{tmp_path}/pairs.jsonl", f"{tmp_path}/out", "--endpoint", "http://localhost:1", "--model", "m"]
    columns = ["--chosen", "chosen", "--rejected", "rejected"]
    for arguments, message in (
        (["score", "model", "--text", "go\ud83d"], "error: TEXT has half of a character"),
        (["inspect", "pairs\udcff.jsonl"], "error: DATASET has half of a character"),
        ([*edit, "--criteria", f"{tmp_path}/latin.txt"], f"error: {tmp_path}/latin.txt is not UTF-8"),
        ([*edit, "--prompt-template", f"{tmp_path}/latin.txt"], f"error: {tmp_path}/latin.txt is not UTF-8"),
        (
            ["import", "columns", f"{tmp_path}/latin.csv", f"{tmp_path}/out", *columns],
            "of {tmp}/latin.csv: 'utf-8' codec",
        ),
        (
            ["import", "columns", f"{tmp_path}/half.jsonl", f"{tmp_path}/out", *columns],
            "{tmp}/half.jsonl cannot be read",
        ),
        (
            ["import", "columns", f"{tmp_path}/mixed.jsonl", f"{tmp_path}/out", *columns],
            "{tmp}/mixed.jsonl cannot be read",
        ),
        (["inspect", f"{tmp_path}/half.jsonl"], "{tmp}/half.jsonl cannot be read"),
    ):
        assert cli.main(arguments) == 2
        assert message.format(tmp=tmp_path) in capsys.readouterr().err, arguments


def test_an_error_holds_nothing_that_a_terminal_would_obey(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"\\u001b[2J\\u009b": "a"}\n')
    assert cli.main(["inspect", str(tmp_path / "rows.jsonl")]) == 2
    assert cli.main(["inspect", "\x1b]0;title\x07.jsonl"]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error and "\x07" not in error and "\x9b" not in error
    assert "There is no data set at ␛]0;title␇.jsonl" in error


def test_an_error_has_no_line_breaks_and_a_bug_keeps_its_traceback(monkeypatch, capsys):
    def fail(error):
        def run(_):
            raise error

        return run

    monkeypatch.setattr("trl_tokenreward.cli.inspect.run", fail(OSError("one\n  two")))
    assert cli.main(["inspect", "x"]) == 2
    assert capsys.readouterr().err == "trl-tokenreward inspect: error: one two\n"
    monkeypatch.setattr("trl_tokenreward.cli.inspect.run", fail(KeyboardInterrupt()))
    assert cli.main(["inspect", "x"]) == 130
    assert capsys.readouterr().err == "trl-tokenreward inspect: interrupted\n"
    monkeypatch.setattr("trl_tokenreward.cli.inspect.run", fail(KeyError("bug")))
    with pytest.raises(KeyError):
        cli.main(["inspect", "x"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nofile.jsonl"], "There is no data set at nofile.jsonl."),
        (["inspect", "here/nosuch"], "There is no data set at here/nosuch."),
        (["inspect", "here/rows.jsonl", "--tokenizer", "here/nosuch"], "There is no tokenizer at here/nosuch."),
        (["inspect", "here/rows.jsonl", "--output", "page"], "page: a page's name must end in .html."),
        (["inspect", "here/rows.jsonl"], "column `chosen`: is missing; the row has"),
        (["score", "here/nosuch", "--text", "a"], "There is no model at here/nosuch."),
        (["score", "here", "--file", "nofile.csv"], "There is no data set at nofile.csv."),
        (["score", "here", "--text", "a", "--output", "a.txt"], "a.txt: a page's name must end in .html."),
        (["score", "here", "--text", "a", "--output", "here/rows.jsonl/a/b.html"], "here/rows.jsonl is no folder."),
        (["inspect", "here/rows.jsonl", "--output", "here/rows.jsonl/b.html"], "here/rows.jsonl is no folder."),
        (["score", "here", "--text", "a", "--output", "page.html"], "page.html is a folder: name a file."),
        (["import", "columns", "here/rows.jsonl", "here/rows.jsonl/out"], "here/rows.jsonl is no folder."),
        (["edit", "here/rows.jsonl", "out", "--local", "./no/model"], "There is no model at ./no/model."),
        (["import", "columns", "here/rows.jsonl", "out"], "--chosen COLUMN --rejected COLUMN"),
    ],
)
def test_what_is_not_there_is_named_at_once(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "page.html").mkdir()
    (tmp_path / "here/rows.jsonl").write_text('{"good": "a b", "bad": "a c"}\n', encoding="utf-8")
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_page_in_a_folder_that_may_not_be_written_to_is_an_error_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    assert cli.main(["score", str(tmp_path / "none"), "--text", "a", "--output", str(tmp_path / "new/a.html")]) == 2
    assert f"new/a.html cannot be written: {tmp_path} may not be written to." in capsys.readouterr().err


def test_weights_that_were_cut_short_are_named(tmp_path, capsys):
    TokenRewardModel.from_backbone(tiny.sequence_classifier()).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert cli.main(["score", str(tmp_path), "--text", "a"]) == 2
    assert f"error: No model could be loaded from {tmp_path}: Error while" in capsys.readouterr().err


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"No tokenizer could be loaded from {tmp_path}"):
        load_tokenizer(tmp_path)
