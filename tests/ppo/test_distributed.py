"""Any number of processes train as one process does with the same batches, under DDP and under FSDP2."""

import importlib.util
from functools import cache

import pytest
import torch

import ppo_runs
from processes import launch, load
from trl_tokenreward import read_completions


pytestmark = pytest.mark.slow


PEFT = ["peft", "one base"] if importlib.util.find_spec("peft") else []

# One launch, some 20 seconds of imports, serves all the runs of an engine and a number of processes. "stream" has a
# GPT-2, whose head is its embedding, and the others have Llamas.
RUNS = {
    ("ddp", 2): ["terminal", "stream", "function", "several", "full length", "shared trunk", *PEFT],
    ("ddp", 4): ["function"],
    ("fsdp2", 2): ["terminal", "several", "full length", "shared trunk", *PEFT],
    ("fsdp2", 4): ["stream"],
}
# What goes on from which checkpoint.
RESUMED = {
    ("ddp", 4): {"stream": ("ddp", 2)},
    ("fsdp2", 4): {"terminal": ("ddp", 2), **dict.fromkeys(PEFT, ("fsdp2", 2))},
}


def _case(engine, processes, *run):
    marks = () if (engine, processes) == ("ddp", 2) else pytest.mark.any_trl
    return pytest.param(engine, processes, *run, marks=marks)


ALL_RUNS = [_case(*engine, run) for engine, runs in RUNS.items() for run in runs]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of all the runs of an engine on a number of processes."""

    @cache
    def train(engine, processes):
        directory = tmp_path_factory.mktemp(f"{engine}-{processes}")
        resumed = []
        for run, origin in RESUMED.get((engine, processes), {}).items():
            resumed += ["--resumed", run, train(*origin) / run / "checkpoint-8"]
        runs = RUNS[engine, processes]
        launch(ppo_runs.__file__, directory, *runs, *resumed, engine=engine, processes=processes)
        return directory

    return train


def assert_close(actual, expected):
    (actual, actual_logs), (expected, expected_logs) = actual, expected
    for name, tensor in actual.items():
        # Float addition in another order, through at most 16 steps of Adam.
        torch.testing.assert_close(
            tensor, expected[name], rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )
    ppo_runs.assert_same_logs(actual_logs, expected_logs)


def test_the_main_process_logs_the_completions_of_all(one, trained):
    alone, together = (
        read_completions(folder) for folder in (one("stream")[2].args.output_dir, trained("ddp", 2) / "stream")
    )
    assert len(together) == len(alone) == 32  # all eight of each of four updates
    for row, expected in zip(together, alone, strict=True):
        assert (row.name, row.prompt, row.texts[0].tokens) == (expected.name, expected.prompt, expected.texts[0].tokens)
        for name, values in row.texts[0].series.items():
            assert values == pytest.approx(expected.texts[0].series[name], rel=1e-4, abs=2e-5), name


@pytest.mark.parametrize(("engine", "processes", "run"), ALL_RUNS)
def test_several_processes_train_as_one(engine, processes, run, one, trained):
    tensors, logs, _ = one(run)
    directory = trained(engine, processes) / run
    assert load(directory, 0)["engine"] == {"ddp": "MULTI_CPU", "fsdp2": "FSDP"}[engine]
    outcome = ppo_runs.load_outcome(directory)
    assert set(outcome[0]) == set(tensors)
    assert_close(outcome, (tensors, logs))
    evaluations = [entry for entry in logs if "eval_objective/scores" in entry]
    assert len(evaluations) == 3 and len(logs) > 8  # at 6, 12 and the end


@pytest.mark.parametrize(("engine", "processes", "run"), ALL_RUNS)
def test_all_processes_have_the_same(engine, processes, run, trained):
    first, first_logs = ppo_runs.load_outcome(trained(engine, processes) / run)
    for rank in range(1, processes):
        other, other_logs = ppo_runs.load_outcome(trained(engine, processes) / run, rank)
        assert set(first) == set(other)
        assert [name for name in first if not torch.equal(first[name], other[name])] == []
        assert first_logs == other_logs


@pytest.mark.parametrize(("engine", "processes", "run"), ALL_RUNS)
def test_every_process_samples_for_prompts_of_its_own(engine, processes, run, one, trained):
    tensors, _, _ = one(run)
    shares = [load(trained(engine, processes) / run, rank)["prompts"] for rank in range(processes)]
    for update in range(4):
        ids, mask = (tensors[f"rollout.{update}.prompt_{name}"] for name in ("ids", "mask"))
        batch = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
        parts = [share[str(update)] for share in shares]
        assert {len(part) for part in parts} == {len(batch) // processes}
        assert sum(parts, []) == batch
        assert all(first != second for i, first in enumerate(parts) for second in parts[:i])


@pytest.mark.parametrize(("engine", "processes"), [_case(*engine) for engine in RUNS])
def test_advantages_are_whitened_over_all_processes(engine, processes, trained):
    tensors, _ = ppo_runs.load_outcome(trained(engine, processes) / RUNS[engine, processes][0])
    of_parts = []
    for update in range(4):
        advantages, mask = (tensors[f"rollout.{update}.{name}"] for name in ("advantages", "completion_mask"))
        real = advantages[mask.bool()]
        assert float(real.mean()) == pytest.approx(0, abs=1e-5) and float(real.var()) == pytest.approx(1, abs=1e-3)
        parts = zip(advantages.chunk(processes), mask.chunk(processes), strict=True)
        of_parts += [float(part[kept.bool()].mean()) for part, kept in parts]
    assert max(map(abs, of_parts)) > 0.1


@pytest.mark.parametrize(("engine", "processes", "run"), ALL_RUNS)
def test_samples_of_all_processes_are_listed(engine, processes, run, one, trained):
    expected = one(run)[2].generate_completions().to_dict("records")
    assert len(expected) == 5
    for rank in range(processes):
        table = load(trained(engine, processes) / run, rank)["table"]
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


@pytest.mark.parametrize(
    ("engine", "processes", "run"), [_case(*engine, run) for engine, runs in RESUMED.items() for run in runs]
)
def test_four_processes_go_on_from_a_checkpoint_of_two(engine, processes, run, one, trained):
    tensors, logs, _ = one(run)
    outcome = ppo_runs.load_outcome(trained(engine, processes) / f"{run} resumed")
    assert {name.split(".")[1] for name in outcome[0] if name.startswith("rollout.")} == {"2", "3"}
    assert any(name.startswith("optimizer.") for name in outcome[0])
    assert_close(outcome, (tensors, logs))


@pytest.mark.parametrize(
    ("engine", "processes", "run"),
    [_case("ddp", 2, "stream"), _case("fsdp2", 2, "terminal"), *(_case("fsdp2", 2, run) for run in PEFT)],
)
def test_one_process_goes_on_from_a_checkpoint_of_two(engine, processes, run, one, trained, tmp_path):
    trainer = ppo_runs.make(run, tmp_path)
    trainer.train(resume_from_checkpoint=str(trained(engine, processes) / run / "checkpoint-8"))
    assert sorted(trainer.rollouts) == [2, 3]
    tensors, logs, _ = one(run)
    assert_close(ppo_runs.outcome(trainer), (tensors, logs))


@pytest.mark.any_trl
def test_a_checkpoint_of_fsdp_holds_whole_models(one, trained):
    """What `from_pretrained` takes, with the weights of the last step."""
    trainer = one("terminal")[2]
    checkpoint = trained("fsdp2", 2) / "terminal" / "checkpoint-16"
    for model, folder in ((trainer.policy_model, checkpoint), (trainer.value_model, checkpoint / "value_model")):
        saved = type(model).from_pretrained(folder)
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(saved.state_dict()[name], tensor, rtol=1e-5, atol=1e-5)
