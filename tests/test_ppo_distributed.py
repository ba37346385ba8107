"""Two processes train as one process does with the same batches."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from functools import cache

import pytest
import torch

import ppo_runs


# One launch serves all the runs.
RUNS = ["terminal", "stream", "function", "full length"]
if importlib.util.find_spec("peft"):
    RUNS.append("peft")


def launch(script, *arguments, timeout=400):
    """Run a script on two processes of this machine's CPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Without MPI, `--cpu` starts one process only. `--multi_gpu` starts them by torchrun; that they use the CPU and gloo is
    # said by `use_cpu` in the training arguments.
    launcher = "--multi_gpu --num_machines 1 --num_processes 2 --mixed_precision no --dynamo_backend no"
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher.split(), "--main_process_port", str(port)]
    environment = {**os.environ, **ppo_runs.ENVIRONMENT, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, str(script), *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-10000:]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of all the runs on two processes."""
    directory = tmp_path_factory.mktemp("two")
    launch(ppo_runs.__file__, directory, *RUNS)
    return directory


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run on this process alone: its outcome, its samples and the trainer."""

    @cache
    def train(run):
        trainer = ppo_runs.make(run, tmp_path_factory.mktemp("one"))
        trainer.train()
        return *ppo_runs.outcome(trainer), trainer

    return train


def assert_close(actual, expected):
    (actual, actual_logs), (expected, expected_logs) = actual, expected
    for name, tensor in actual.items():
        # Float addition in another order, through at most 16 steps of Adam.
        torch.testing.assert_close(
            tensor, expected[name], rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )
    assert len(actual_logs) == len(expected_logs)
    for entry, expected_entry in zip(actual_logs, expected_logs, strict=True):
        assert entry == pytest.approx(expected_entry, rel=1e-4, abs=2e-5)


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_train_as_one(run, one, two):
    tensors, logs, _ = one(run)
    outcome = ppo_runs.load_outcome(two / run)
    assert set(outcome[0]) == set(tensors)
    assert_close(outcome, (tensors, logs))
    evaluations = [entry for entry in logs if "eval_objective/scores" in entry]
    assert len(evaluations) == 3 and len(logs) > 8  # at 6, 12 and the end


@pytest.mark.parametrize("run", RUNS)
def test_both_processes_have_the_same(run, two):
    (first, first_logs), (second, second_logs) = (ppo_runs.load_outcome(two / run, rank) for rank in (0, 1))
    assert set(first) == set(second)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert first_logs == second_logs


@pytest.mark.parametrize("run", RUNS)
def test_samples_of_all_processes_are_listed(run, one, two):
    expected = one(run)[2].generate_completions().to_dict("records")
    assert len(expected) == 5
    for rank in (0, 1):
        table = json.loads((two / run / f"outcome-{rank}.json").read_text())["table"]
        by_query = {row["query"]: row for row in table}
        assert len(table) == len(by_query) == 5
        for row in expected:
            assert by_query[row["query"]] == {**row, "score": pytest.approx(row["score"], abs=1e-4)}


def test_the_runs_put_it_to_the_test(one):
    """Processes that have prompts of other widths and completions of other lengths, and completions without an end."""
    tensors, _, _ = one("terminal")
    widths, lengths = set(), set()
    for update in range(4):
        halves = [tensors[f"rollout.{update}.{name}_mask"].chunk(2) for name in ("prompt", "completion")]
        widths.add(tuple(int(half.sum(1).max()) for half in halves[0]))
        lengths.add(tuple(int(half.sum(1).max()) for half in halves[1]))
    assert any(first != second for first, second in widths)
    assert any(first != second for first, second in lengths)
    ended = torch.cat([tensors[f"rollout.{update}.ended"] for update in range(4)])
    assert ended.any() and not ended.all()


def test_one_process_goes_on_from_a_checkpoint_of_two(one, two, tmp_path):
    trainer = ppo_runs.make("stream", tmp_path)
    trainer.train(resume_from_checkpoint=str(two / "stream" / "checkpoint-8"))
    assert sorted(trainer.rollouts) == [2, 3]
    tensors, logs, _ = one("stream")
    assert_close(ppo_runs.outcome(trainer), (tensors, logs))
