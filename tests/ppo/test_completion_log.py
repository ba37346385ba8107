"""Completions that a training logs: what is written, that resuming leaves no trace, and what the trackers get."""

import html
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset

import ppo_runs
from trl_tokenreward import FineGrainedPPOConfig, read_completions
from trl_tokenreward.cli import main as cli
from trl_tokenreward.ppo.trackers import completion_columns, markdown_table, score_figure
from trl_tokenreward.views.scored_text import ScoredRow, ScoredText


SETTINGS = {"log_completions": True, "num_completions_to_log": 3, "eval_strategy": "no"}


def files(folder):
    return {path.name: pq.read_table(path).to_pylist() for path in sorted(Path(folder, "completions").iterdir())}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer = ppo_runs.make("stream", folder, **SETTINGS)
    trainer.train()
    return trainer


def test_what_is_written_is_what_the_rollout_has(run):
    # Four steps to an update, logs at 3, 6, 9, ... and where a checkpoint is: the update before each is written once.
    written = files(run.args.output_dir)
    assert list(written) == [f"completions_{step:05d}.parquet" for step in (3, 6, 9, 15)]
    for records, update in zip(written.values(), (1, 2, 3, 4), strict=True):
        rollout = run.rollouts[update - 1]
        assert len(records) == 3
        for record in records:
            assert record["update"] == update
            rows = [
                row
                for row in range(8)
                if record["completion"].split()
                == run.processing_class.decode(rollout.completion_ids[row][rollout.completion_mask[row].bool()]).split()
                and record["prompt"]
                == run.processing_class.decode(
                    rollout.prompt_ids[row][rollout.prompt_mask[row].bool()], skip_special_tokens=True
                )
            ]
            inside = rollout.completion_mask[rows[0]].bool()
            expected = {
                "scores": rollout.raw_token_scores,
                "rewards": rollout.token_level_rewards,
                "kl": rollout.kl,
                "values": rollout.values,
                "advantages": rollout.advantages,
            }
            for name, tensor in expected.items():
                assert record[name] == pytest.approx(tensor[rows[0]][inside].tolist(), abs=1e-6), name
            assert sum(record["scores"]) == pytest.approx(float(rollout.raw_scores[rows[0]]), abs=1e-4)
            assert record["ended"] == bool(rollout.ended[rows[0]])
            assert len(record["tokens"]) == int(inside.sum())


def test_prompts_that_were_logged_are_logged_again(run):
    # Thirteen prompts, eight to an update: of the three with the smallest checksums, each comes up in most updates.
    prompts = [{record["prompt"] for record in records} for records in files(run.args.output_dir).values()]
    assert all(prompts[i] & prompts[i + 1] for i in range(3))


def test_a_resumed_run_leaves_what_an_undisturbed_one_does(run, tmp_path):
    trainer = ppo_runs.make("stream", tmp_path, **SETTINGS, max_steps=16)
    trainer.train()
    assert files(tmp_path) == files(run.args.output_dir)
    stale = tmp_path / "completions" / "completions_00014.parquet"
    stale.write_bytes(b"of a run that went further")
    resumed = ppo_runs.make("stream", tmp_path, **SETTINGS)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert files(tmp_path) == files(run.args.output_dir)


def test_nothing_is_written_unless_it_is_asked_for(tmp_path):
    trainer = ppo_runs.make("terminal", tmp_path, max_steps=4, eval_strategy="no")
    trainer.train()
    assert not (tmp_path / "completions").exists() and trainer.completion_log is None


def test_they_are_read_and_shown(run, tmp_path, capsys):
    rows = read_completions(run.args.output_dir)
    assert [row.step for row in rows] == [3] * 3 + [6] * 3 + [9] * 3 + [15] * 3
    [text] = rows[0].texts
    assert list(text.series) == ["score", "reward", "KL", "value", "advantage"]
    assert text.numbers["KL"] == pytest.approx(sum(text.series["KL"]))
    assert rows[0].name == "Update 1, step 3" and re.fullmatch(r"\d tokens(, cut off)?", text.name)
    assert load_dataset(str(Path(run.args.output_dir, "completions")), split="train").num_rows == 12
    assert (
        cli.main(["score", "--run", str(run.args.output_dir), "--show", "3", "--output", str(tmp_path / "p.html")]) == 0
    )
    printed = capsys.readouterr().out
    assert "Update 4, step 15" in printed and "Update 3" not in printed and "The last 3 of 12 rows" in printed
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert page.count("<article") == 12 and '<option value="4">advantage</option>' in page
    with pytest.raises(ValueError, match="train with `log_completions=True`"):
        read_completions(tmp_path)


def test_trls_own_table_is_refused(tmp_path):
    (tmp_path / "completions").mkdir()
    table = pa.table({"step": [5], "prompt": ["a"], "completion": ["b"], "reward": [1.0]})
    pq.write_table(table, tmp_path / "completions" / "completions_00005.parquet")
    with pytest.raises(ValueError, match="TRL's table of completions in 'completions', without their tokens"):
        read_completions(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_completions_to_log": 3}, "has no effect without `log_completions=True`"),
        ({"log_completions": True, "num_completions_to_log": 0}, "must be at least 1, got 0"),
        ({"log_completions": True, "logging_strategy": "no"}, "has no effect with `logging_strategy='no'`"),
    ],
)
def test_settings_without_effect(settings, message):
    with pytest.raises(ValueError, match=message):
        FineGrainedPPOConfig(output_dir="x", bf16=False, use_cpu=True, **settings)


# --- trackers ------------------------------------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)>|**b** [l](javascript:x)\n`c`"
ROWS = [
    ScoredRow("Update 1, step 3", HOSTILE, [ScoredText([HOSTILE, "$x_1$", "🦊", ""], {"score": [1, -2, 0.5, 1.5]})], 3),
    ScoredRow("Update 1, step 3", "q", [ScoredText(["word "] * 400, {"score": [0.0] * 400}, numbers={"KL": 2.0})], 3),
]


@pytest.mark.any_trl
def test_the_table_and_its_markdown():
    [row, _] = ROWS
    table = completion_columns([row])
    assert table["mean score"] == [0.25] and table["length"] == [4] and table["step"] == [3]
    assert table["token scores"][0].endswith("$x_1$ (-2.00) 🦊 (+1.00)")
    lines = markdown_table(table).split("\n")
    assert len(lines) == 3 and lines[1] == "|" + " --- |" * len(table)
    assert lines[2].count("|") == len(table) + 1 and not set("<>*`[]()") & set(lines[2])
    assert "&#60;img src&#61;x" in lines[2]


@pytest.mark.any_trl
def test_the_figure_shows_colours_and_dots_and_says_what_it_leaves_out():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: demo)")
    figure = score_figure(ROWS)
    [axes] = figure.axes
    texts = [text.get_text() for text in axes.texts]
    assert "$x_1$" in texts and "🦊" in texts and "score: colours end at ±2.00" in texts
    assert any(re.fullmatch(r"… \d+ more tokens", text) for text in texts)
    colours = {tuple(round(c, 2) for c in patch.get_facecolor()) for patch in axes.patches}
    assert {(0.9, 0.38, 0.0, 0.6), (0.13, 0.4, 0.67, 0.3)} <= colours
    assert len(axes.lines) == 1  # the one token at or below half of the scale is dotted
    figure.canvas.draw()


TRACKERS = [name for name in ("tensorboard", "trackio", "wandb") if find_spec(name)]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run that logs to all the trackers that are installed, in a process that sees no network, and what is found
    there."""
    if not TRACKERS:
        pytest.skip("none of tensorboard, trackio and wandb is installed (extra: dev)")
    folder = tmp_path_factory.mktemp("tracked")
    script = f"""
import ppo_runs
trainer = ppo_runs.make("stream", {str(folder / "run")!r}, report_to={TRACKERS!r}, max_steps=8, save_strategy="no",
    run_name="run", project="tests", **{SETTINGS!r})
trainer.train()
"""
    environment = {
        **os.environ,
        **ppo_runs.ENVIRONMENT,
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
        "TRACKIO_DIR": str(folder / "trackio"),
        "TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard"),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def expected_completions(folder):
    return [record["completion"] for record in files(folder / "run")["completions_00006.parquet"]]


@pytest.mark.any_trl
def test_tensorboard(tracked):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra: dev)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked / "tensorboard"), size_guidance={"images": 0, "tensors": 0}).Reload()
    tables = events.Tensors("train/completions/text_summary")
    assert [table.step for table in tables] == [3, 6]
    text = html.unescape(tables[-1].tensor_proto.string_val[0].decode())
    assert all(f"| {completion} |" in text for completion in expected_completions(tracked))
    if find_spec("matplotlib"):
        images = events.Images("train/token_scores")
        assert [image.step for image in images] == [3, 6] and images[0].width > 600


@pytest.mark.any_trl
def test_wandb(tracked):
    pytest.importorskip("wandb", reason="wandb is not installed (extra: dev)")
    [run] = tracked.glob("wandb/offline-run-*")
    tables = [json.loads(path.read_text()) for path in run.glob("files/media/table/train/completions_*.table.json")]
    steps = {table["data"][0][table["columns"].index("step")]: table for table in tables}
    assert sorted(steps) == [3, 6]
    column = steps[6]["columns"].index("completion")
    assert [row[column] for row in steps[6]["data"]] == expected_completions(tracked)
    if find_spec("matplotlib"):
        assert len(list(run.glob("files/media/images/train/token_scores_*.png"))) == 2


@pytest.mark.any_trl
def test_trackio(tracked):
    pytest.importorskip("trackio", reason="trackio is not installed (extra: dev)")
    code = """
import json
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps([log for log in SQLiteStorage.get_logs("tests", "run") if "train/completions" in log], default=str))
"""
    environment = {**os.environ, "TRACKIO_DIR": str(tracked / "trackio")}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    logs = json.loads(output.stdout)
    assert [log["train/global_step"] for log in logs] == [3, 6]
    assert [row["completion"] for row in logs[1]["train/completions"]["_value"]] == expected_completions(tracked)
    if find_spec("matplotlib"):
        assert all(log["train/token_scores"]["_type"] == "trackio.image" for log in logs)
        assert len(list((tracked / "trackio" / "media").rglob("*.png"))) == 2
