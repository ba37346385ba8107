"""A NaN ends a run at once, names where it comes from, and reaches no checkpoint."""

import math

import pytest
import torch
from accelerate import Accelerator

import not_finite_run
import tiny
from ppo_scenario import prompts
from processes import launch, load
from tiny import A
from trl_tokenreward.evaluation.judges import RewardModelJudge
from trl_tokenreward.evaluation.win_rate import evaluate_win_rate
from trl_tokenreward.ppo.metrics import sampling_difference
from trl_tokenreward.ppo.rollout import Completions


def with_nan(model, head):
    """The model with a NaN in the weights of its head, which every token meets."""
    model.get_submodule(head).weight.data[0, 0] = math.nan
    return model


BROKEN = {
    "policy": ({"policy": lambda: with_nan(tiny.bigram_lm(), "lm_head")}, "a log-probability of `model` is nan"),
    "reference": (
        {"ref_model": lambda: with_nan(tiny.bigram_lm(), "lm_head")},
        "a log-probability of `ref_model` is nan",
    ),
    "value": ({"value": lambda: with_nan(tiny.unigram_classifier(), "score")}, "a value of `value_model` is nan"),
    "reward": ({"reward": lambda: with_nan(tiny.unigram_classifier(), "score")}, "a score of `reward_model` is nan"),
    "large": (
        {"reward": lambda: lambda completion_ids, **_: [1e38] * len(completion_ids)},
        r"a score of `reward_model` is 1e\+38, too large for its square",
    ),
}


@pytest.mark.parametrize(("models", "message"), BROKEN.values(), ids=BROKEN)
def test_a_rollout_names_the_model_and_the_row(scenario, models, message):
    trainer = scenario.make(**{name: make() for name, make in models.items()})
    with pytest.raises(ValueError, match=f"^Update 0, row [0-3]: {message}"):
        trainer.train()


@pytest.mark.parametrize(("models", "message"), BROKEN.values(), ids=BROKEN)
def test_an_evaluation_names_the_model_and_the_row(scenario, models, message):
    dataset = prompts([A], [A], [A])
    trainer = scenario.make(eval_dataset=dataset, **{name: make() for name, make in models.items()})
    for evaluate in (trainer.evaluate, trainer.generate_completions):
        with pytest.raises(ValueError, match=f"^Evaluation, row [0-2]: {message}"):
            evaluate()


def test_shaping_is_checked_too(scenario):
    # Each score is finite, and so is its square, but their product with the scale is not.
    trainer = scenario.make(reward=lambda completion_ids, **_: [1e17] * len(completion_ids), reward_scale=1e30)
    with pytest.raises(ValueError, match="row 0: a score of `reward_model`, shaped, is (inf|nan)"):
        trainer.train()


def test_the_last_good_checkpoint_stays(scenario, tmp_path):
    calls = []

    def reward(completion_ids, **_):
        calls.append(1)
        return [1e38 if len(calls) == 3 else 0.0] * len(completion_ids)

    trainer = scenario.make(reward=reward, max_steps=4, save_strategy="steps", save_steps=1, save_total_limit=1)
    with pytest.raises(ValueError, match=r"^Update 2, row 0: .* checkpoints of earlier updates are as they were"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def train_with_loss(scenario, value, **settings):
    """A run in which the second optimizer step's loss is a NaN that no rollout knows of."""
    trainer = scenario.make(max_steps=4, **settings)
    compute_loss = trainer.compute_loss

    def broken(*args, **kwargs):
        loss = compute_loss(*args, **kwargs)
        if trainer.state.global_step == 1:
            trainer.step_statistics.add({"loss/value_avg": torch.tensor(value)})
        return loss

    trainer.compute_loss = broken
    return trainer


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_is_checked_before_its_step(scenario, optimizer_steps, value):
    trainer = train_with_loss(scenario, value)
    with pytest.raises(ValueError, match=r"^Update 1, optimizer step 1: the loss of `value_model` is (nan|inf)"):
        trainer.train()
    assert len(optimizer_steps) == 1


class BrokenGradients:
    """Makes the gradients of the last step NaN, which no loss shows."""

    def __init__(self, trainer):
        step = trainer.training_step

        def training_step(*args, **kwargs):
            loss = step(*args, **kwargs)
            for parameter in trainer.policy_model.parameters():
                parameter.grad.fill_(math.nan)
            return loss

        trainer.training_step = training_step


@pytest.mark.parametrize("save", ["no", "steps"])
def test_weights_are_checked_before_they_are_saved_or_returned(scenario, tmp_path, save):
    trainer = scenario.make(save_strategy=save, save_steps=1)
    BrokenGradients(trainer)
    with pytest.raises(ValueError, match=r"After optimizer step 1: the weight policy\.\S+ has NaN"):
        trainer.train()
    with pytest.raises(ValueError, match="has NaN"):
        trainer.save_model(str(tmp_path / "final"))
    assert not list(tmp_path.glob("**/*.safetensors"))


class TestVLLM:
    def difference(self, logps):
        mask = torch.tensor([[1, 1], [1, 0]])
        completions = Completions(torch.zeros_like(mask), mask, torch.tensor(logps), torch.zeros(2).bool())
        return sampling_difference(completions, torch.zeros(2, 2), Accelerator(cpu=True))

    def test_single_unknown_tokens_do_not_count(self):
        logps = [[-1.0, math.nan], [-3.0, math.nan]]
        assert self.difference(logps)["sampling/sampling_logp_difference/mean"] == 2.0

    @pytest.mark.parametrize("logps", [[[math.nan] * 2] * 2, [[-math.inf, -1.0], [-1.0, 0.0]]])
    def test_nothing_known_is_an_error(self, logps):
        with pytest.raises(RuntimeError, match="vLLM's log-probabilities are not finite"):
            self.difference(logps)


class TestWinRate:
    def test_a_policy_or_reference(self):
        models = tiny.bigram_lm(), with_nan(tiny.bigram_lm(), "lm_head")
        for name, policy, reference in (("policy", *models[::-1]), ("reference", *models)):
            with pytest.raises(ValueError, match=f"^Evaluation, row 0: a log-probability of `{name}` is nan"):
                evaluate_win_rate(
                    policy, reference, tiny.word_tokenizer(), ["a", "b"], lambda *texts: [1.0, 1.0], response_length=3
                )

    def test_a_judge(self):
        judge = RewardModelJudge(with_nan(tiny.unigram_classifier(), "score"), tiny.word_tokenizer())
        with pytest.raises(ValueError, match="^RewardModelJudge, row 0: a score is nan"):
            judge(["a", "b"], ["a", "b"], ["b", "a"])


@pytest.mark.slow
def test_all_processes_raise_what_one_of_them_meets(tmp_path):
    launch(not_finite_run.__file__, tmp_path, processes=2, timeout=300)
    raised = load(tmp_path, 1)
    assert raised == load(tmp_path, 0)
    beginnings = {
        "in_a_reward": "Update 1, row 4: a score of `reward_model` is 1e+38",
        "in_an_evaluation": "Evaluation, row 2: a score of `reward_model` is 1e+38",
        "in_a_loss": "Update 0, optimizer step 0: the loss of `model` is nan",
        "in_a_weight": "After optimizer step 0: the weight policy.",
        "in_token_scores": "Optimizer step 0, batch, row ",
    }
    assert set(raised) == set(beginnings)
    for case, beginning in beginnings.items():
        assert raised[case].startswith(beginning), raised[case]
    assert [path.name for path in (tmp_path / "in_a_reward").glob("checkpoint-*")] == ["checkpoint-4"]


def test_gradients_whose_step_is_skipped_do_no_harm(scenario):
    """As a gradient scaler of fp16 skips steps while it looks for its scale."""
    trainer = scenario.make(max_steps=2)
    BrokenGradients(trainer)
    create_optimizer = trainer.create_optimizer

    def with_scaler(*args, **kwargs):
        optimizer = create_optimizer(*args, **kwargs)
        step = optimizer.step

        def step_unless_infinite(*args, **kwargs):
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
            if all(gradient.isfinite().all() for gradient in gradients):
                step(*args, **kwargs)

        optimizer.step = step_unless_infinite
        return optimizer

    trainer.create_optimizer = with_scaler
    trainer.train()
    assert trainer.state.global_step == 2
