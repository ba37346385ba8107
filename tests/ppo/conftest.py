"""Fixtures of the tests of ppo."""

import gc
from functools import cache

import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook

import ppo_runs
from ppo_scenario import Scenario


@pytest.fixture
def scenario(tmp_path, monkeypatch):
    # TRL's trainer collects garbage at every update, which takes it longer than all the rest here.
    monkeypatch.setattr(gc, "collect", lambda: 0)
    return Scenario(tmp_path)


@pytest.fixture
def optimizer_steps():
    """A list that gets an entry for each optimizer step."""
    steps = []
    handle = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    yield steps
    handle.remove()


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run on this process alone: its tensors, its logs and the trainer."""

    @cache
    def train(run):
        trainer = ppo_runs.make(run, tmp_path_factory.mktemp("one"))
        trainer.train()
        return *ppo_runs.outcome(trainer), trainer

    return train
