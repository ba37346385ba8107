"""A run that is stopped and resumed is the run that was never stopped, bit for bit."""

import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

import ppo_runs
from trl_tokenreward import FineGrainedPPOConfig, TokenRewardModel
from trl_tokenreward.ppo.adaptation import AdaptiveState


pytestmark = pytest.mark.slow


class Interrupted(Exception):
    pass


class InterruptAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Interrupted


def interrupted(run, directory, step, **overrides):
    trainer = ppo_runs.make(run, directory, callbacks=[InterruptAt(step)], **overrides)
    with pytest.raises(Interrupted):
        trainer.train()
    return trainer


def checkpoints(directory):
    return sorted((p.name for p in Path(directory).glob("checkpoint-*")), key=lambda name: int(name.split("-")[1]))


def assert_equal(resumed, whole):
    (resumed, resumed_logs), (whole, whole_logs) = resumed, whole
    # The resumed run has no rollouts of the updates before; all else is there twice.
    assert {name for name in whole if not name.startswith("rollout")} <= set(resumed)
    assert any(name.startswith("rollout") for name in resumed)
    different = [name for name, tensor in resumed.items() if not torch.equal(tensor, whole[name])]
    assert not different
    assert len(resumed_logs) == len(whole_logs)
    for entry, whole_entry in zip(resumed_logs, whole_logs, strict=True):
        assert entry == whole_entry


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What comes out of a run that nobody disturbs."""

    @cache
    def outcome(run):
        directory = tmp_path_factory.mktemp("whole")
        trainer = ppo_runs.make(run, directory)
        initial = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        trainer.train()
        # Saves fall due at 5, 10 and 15; an update takes 4 steps.
        assert checkpoints(directory) == ["checkpoint-8", "checkpoint-12", "checkpoint-16"]
        moved = {
            name.split(".")[0] for name, tensor in trainer.model.state_dict().items() if (tensor != initial[name]).any()
        }
        assert moved == {"policy", "value_model"}
        scores = [entry["objective/scores"] for entry in trainer.state.log_history if "objective/scores" in entry]
        assert len(set(scores)) == 4
        return ppo_runs.outcome(trainer)

    return outcome


@pytest.mark.parametrize(
    "run",
    [
        "terminal",
        "stream",
        "one base",
        *(pytest.param(run, marks=pytest.mark.any_trl) for run in ("peft", "shared trunk", "function")),
    ],
)
def test_resumed_equals_uninterrupted(run, whole, tmp_path):
    if run in ("peft", "one base"):
        pytest.importorskip("peft")
    interrupted(run, tmp_path, step=11)
    assert checkpoints(tmp_path) == ["checkpoint-8"]
    resumed = ppo_runs.make(run, tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert sorted(resumed.rollouts) == [2, 3]
    assert_equal(ppo_runs.outcome(resumed), whole(run))


def test_a_trainer_can_resume_itself(whole, tmp_path):
    trainer = interrupted("terminal", tmp_path, step=11)
    trainer.remove_callback(InterruptAt)
    trainer.rollouts = {}
    trainer.train(resume_from_checkpoint=True)
    assert_equal(ppo_runs.outcome(trainer), whole("terminal"))


def test_resumed_after_sigkill_equals_uninterrupted(whole, tmp_path):
    """Three processes: one that is killed, one that goes on from what it left, and this one, which nobody disturbs."""

    def run(*options):
        command = [sys.executable, ppo_runs.__file__, str(tmp_path), "stream", *options]
        # The number of threads decides in which order floats are added.
        environment = {**os.environ, **ppo_runs.ENVIRONMENT, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    killed = run("--kill-at", "11")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert checkpoints(tmp_path / "stream") == ["checkpoint-8"]
    resumed = run("--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_equal(ppo_runs.load_outcome(tmp_path / "stream"), whole("stream"))


def test_a_finished_run_has_nothing_to_resume(tmp_path):
    finished = ppo_runs.make("terminal", tmp_path, max_steps=8)
    finished.train()
    resumed = ppo_runs.make("terminal", tmp_path, max_steps=8)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8
    assert not hasattr(resumed, "rollouts")
    for name, tensor in finished.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


class Checkpointed(TrainerCallback):
    """Notes at every save event whether the checkpoint is there."""

    def __init__(self):
        self.seen = {}

    def on_save(self, args, state, control, **kwargs):
        self.seen[state.global_step] = (Path(args.output_dir) / f"checkpoint-{state.global_step}").is_dir()


def test_saves_are_deferred_to_the_ends_of_updates(tmp_path):
    noted = Checkpointed()
    trainer = ppo_runs.make("terminal", tmp_path, callbacks=[noted], save_steps=3, save_total_limit=2)
    trainer.train()
    assert noted.seen == {4: True, 8: True, 12: True, 16: True}
    assert checkpoints(tmp_path) == ["checkpoint-12", "checkpoint-16"]
    resumed = ppo_runs.make("terminal", tmp_path, save_steps=3, save_total_limit=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert_equal(ppo_runs.outcome(resumed), ppo_runs.outcome(trainer))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    trainer = ppo_runs.make("stream", tmp_path_factory.mktemp("trained"), max_steps=4, save_steps=4)
    trainer.train()
    return trainer


def assert_same_weights(loaded, model):
    expected = model.state_dict()
    assert set(loaded.state_dict()) == set(expected)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_checkpoints_are_ordinary_models(trained, tmp_path):
    checkpoint = Path(trained.args.output_dir) / "checkpoint-4"
    assert_same_weights(AutoModelForCausalLM.from_pretrained(checkpoint), trained.model.policy)
    assert_same_weights(TokenRewardModel.from_pretrained(checkpoint / "value_model"), trained.model.value_model)
    # What torch.save wrote is optimizer, schedule and random state, which are read without unpickling code, and the
    # arguments, which are not read.
    pickled = {path for path in checkpoint.rglob("*") if path.suffix in {".bin", ".pt", ".pth", ".pkl"}}
    assert {path.name for path in pickled} == {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"}
    trained.save_model(tmp_path / "final")
    assert_same_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "final"), trained.model.policy)
    assert_same_weights(TokenRewardModel.from_pretrained(tmp_path / "final" / "value_model"), trained.model.value_model)
    pickled = [path for path in (tmp_path / "final").rglob("*") if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    assert pickled == [tmp_path / "final" / "training_args.bin"]
    arguments = torch.load(pickled[0], weights_only=False)
    assert type(arguments) is FineGrainedPPOConfig and arguments.max_steps == 4


def test_a_checkpoint_without_value_model_is_refused(trained, tmp_path):
    checkpoint = tmp_path / "checkpoint-4"
    checkpoint.mkdir()
    for path in (Path(trained.args.output_dir) / "checkpoint-4").iterdir():
        if path.name != "value_model":
            (checkpoint / path.name).symlink_to(path)
    with pytest.raises(ValueError, match="checkpoint-4 has no folder .*value_model with the value_model"):
        ppo_runs.make("stream", tmp_path, max_steps=8).train(resume_from_checkpoint=True)


BEST = {
    "save_steps": 4,
    "eval_steps": 4,
    "load_best_model_at_end": True,
    "metric_for_best_model": "objective/scores",
    "greater_is_better": True,
}


@pytest.mark.parametrize("settings", [BEST, {**BEST, "save_strategy": "best", "save_total_limit": 1}], ids=["", "only"])
def test_the_best_model_is_loaded_at_the_end(settings, tmp_path):
    trainer = ppo_runs.make("terminal", tmp_path, max_steps=12, **settings)
    trainer.train()
    name = "eval_objective/scores"
    scores = [entry[name] for entry in trainer.state.log_history if name in entry]
    assert len(scores) == 3 and max(scores) > scores[-1]  # the best is not the last
    best = tmp_path / f"checkpoint-{4 * (1 + scores.index(max(scores)))}"
    assert Path(trainer.state.best_model_checkpoint) == best
    assert_same_weights(AutoModelForCausalLM.from_pretrained(best), trainer.model.policy)
    assert_same_weights(TokenRewardModel.from_pretrained(best / "value_model"), trainer.model.value_model)
    assert trainer.evaluate()[name] == max(scores)


@pytest.mark.parametrize("eval_steps", [2, 0.25])
def test_the_best_model_is_chosen_at_the_ends_of_updates(eval_steps, tmp_path):
    with pytest.raises(ValueError, match="must be a multiple of num_ppo_epochs \\* num_mini_batches = 4"):
        ppo_runs.make("terminal", tmp_path, max_steps=8, **{**BEST, "eval_steps": eval_steps, "save_steps": eval_steps})


@pytest.mark.parametrize(
    ("settings", "kl_coef", "target_length"),
    [
        ({}, 0.05, 20.0),
        ({"kl_coef": 0.3, "target_length": 9.0}, 0.3, 9.0),
        ({"kl_target": 6.0}, 0.2, 20.0),
        ({"kl_target": 6.0, "kl_coef": 0.3}, 0.3, 20.0),
    ],
)
def test_changed_settings_count_for_what_is_not_adapted(tmp_path, settings, kl_coef, target_length):
    AdaptiveState(0.2, 20.0).save(str(tmp_path))
    args = FineGrainedPPOConfig(str(tmp_path), bf16=False, use_cpu=True, stop_token="eos", hold_length=True, **settings)
    assert AdaptiveState.load(str(tmp_path), args) == AdaptiveState(kl_coef, target_length)
