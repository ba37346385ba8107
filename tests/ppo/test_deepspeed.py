"""Two processes under DeepSpeed ZeRO-2 and ZeRO-3 train as one process does. Where DeepSpeed is installed, which it is
not by `make test`: see docs/scaling.md for how to install it on a machine without a GPU."""

import importlib.util
from functools import cache

import pytest
import torch

import ppo_runs
from processes import launch, load
from trl_tokenreward.ppo.checkpointing import saved_models


pytestmark = [
    pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="DeepSpeed is not installed"),
    pytest.mark.slow,
]

RUNS = ["terminal", "stream", *(["peft"] if importlib.util.find_spec("peft") else [])]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    @cache
    def train(engine):
        directory = tmp_path_factory.mktemp(engine)
        launch(ppo_runs.__file__, directory, *RUNS, engine=engine)
        resumed = [part for run in RUNS for part in ("--resumed", run, directory / run / "checkpoint-8")]
        launch(ppo_runs.__file__, directory / "more", *resumed, engine=engine)
        return directory

    return train


def assert_same_run(directory, expected):
    assert load(directory, 0)["engine"] == "DEEPSPEED"
    tensors, logs = ppo_runs.load_outcome(directory)
    expected_tensors, expected_logs, _ = expected
    assert sum(name.startswith("model.") for name in tensors) > 20
    for name, tensor in tensors.items():
        wanted = expected_tensors[name]
        if name == "learning_rates":  # DeepSpeed drops groups of parameters that are empty
            tensor, wanted = tensor.unique(), wanted.unique()
        torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    ppo_runs.assert_same_logs(logs, expected_logs)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_two_processes_train_as_one(engine, run, one, trained):
    assert_same_run(trained(engine) / run, one(run))


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_two_processes_go_on_from_a_checkpoint(engine, run, one, trained):
    assert_same_run(trained(engine) / "more" / f"{run} resumed", one(run))


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_a_checkpoint_holds_whole_models(engine, one, trained):
    tensors, _, trainer = one("terminal")
    checkpoint = trained(engine) / "terminal" / "checkpoint-16"
    for name, model, folder in saved_models(trainer.model, str(checkpoint)):
        for key, tensor in type(model).from_pretrained(folder).state_dict().items():
            torch.testing.assert_close(tensor, tensors[f"model.{name}.{key}"], rtol=1e-5, atol=1e-5)
