"""Trainer loop: a part of the tests of trainer."""

import math

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerState

import tiny
from ppo_scenario import logged, prompts
from tiny import EOS, A, B, C, D, E
from trl_tokenreward._trl import TRL_HAS_PPO, PPOTrainer


class Recorder(TrainerCallback):
    """Writes down which events happen, and stops the run at a step if asked to."""

    def __init__(self, stop_at=None):
        self.events, self.stop_at = [], stop_at

    def __getattribute__(self, name):
        if name.startswith("on_"):
            self.events.append(name)
        return super().__getattribute__(name)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.stop_at


def test_callbacks_are_called(scenario):
    recorder = Recorder()
    scenario.train(
        callbacks=[recorder],
        num_ppo_epochs=2,
        total_episodes=8,
        logging_steps=2,
        eval_dataset=prompts([A], [B]),
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=2,
    )
    counts = {name: recorder.events.count(name) for name in set(recorder.events)}
    expected = {"on_train_begin": 1, "on_train_end": 1, "on_step_begin": 4, "on_step_end": 4, "on_optimizer_step": 4}
    assert {name: counts[name] for name in expected} == expected
    assert counts["on_evaluate"] == 1 and counts["on_save"] == 2
    assert counts["on_log"] == 4  # two of the training, one of the evaluation, one of the end


def test_callbacks_may_stop_the_run(scenario):
    trainer = scenario.train(callbacks=[Recorder(stop_at=3)], num_ppo_epochs=2, total_episodes=16)
    assert trainer.state.global_step == 3


class StopAt(TrainerCallback):
    """Sets a flag at an event of a step."""

    def __init__(self, event, step, flag="should_training_stop"):
        def stop(args, state, control, **kwargs):
            if state.global_step == step:
                setattr(control, flag, True)

        setattr(self, event, stop)


@pytest.mark.parametrize(
    ("event", "flag"),
    [("on_step_end", "should_training_stop"), ("on_step_end", "should_epoch_stop"), ("on_log", "should_training_stop")],
)
@pytest.mark.parametrize("added_later", [False, True])
def test_a_stop_waits_for_a_checkpoint_that_is_due(event, flag, added_later, scenario, tmp_path):
    callback = StopAt(event, 6, flag)
    settings = {"num_ppo_epochs": 4, "total_episodes": 16, "save_strategy": "steps", "save_steps": 5}
    trainer = scenario.make(callbacks=None if added_later else [callback], **settings)
    if added_later:
        trainer.add_callback(callback)
    trainer.train()
    assert trainer.state.global_step == 8
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-8"]


class Terminated(TrainerCallback):
    """A SIGTERM whose time to wait is over at an event of a step."""

    def __init__(self, event, step):
        def request(args, state, control, **kwargs):
            if state.global_step == step:
                self.manager.is_checkpoint_requested = True

        setattr(self, event, request)


@pytest.mark.parametrize(
    ("event", "step", "last"), [("on_step_begin", 5, 8), ("on_step_begin", 4, 8), ("on_optimizer_step", 3, 4)]
)
def test_a_checkpoint_just_in_time(event, step, last, scenario, tmp_path):
    """It is one of a whole update, as the run would have written it by itself."""
    settings = {"num_ppo_epochs": 4, "total_episodes": 12, "logging_steps": 3}
    scenario.train(save_strategy="steps", save_steps=last, output_dir=str(tmp_path / "whole"), **settings)
    terminated = Terminated(event, step)
    jit = {"enable_jit_checkpoint": True, "output_dir": str(tmp_path / "jit"), "callbacks": [terminated]}
    trainer = scenario.make(**settings, **jit)
    [terminated.manager] = [
        callback.jit_manager for callback in trainer.callback_handler.callbacks if hasattr(callback, "jit_manager")
    ]
    trainer.train()
    assert trainer.state.global_step == last
    whole, jit = (
        TrainerState.load_from_json(tmp_path / run / f"checkpoint-{last}" / "trainer_state.json")
        for run in ("whole", "jit")
    )
    assert jit.epoch == whole.epoch and len(jit.log_history) == len(whole.log_history)
    for entry, expected in zip(jit.log_history, whole.log_history, strict=True):
        assert entry | {"eps": 0} == expected | {"eps": 0}


def test_own_optimizer_and_schedule(scenario):
    policy, value = tiny.bigram_lm(), tiny.unigram_classifier()
    optimizer = torch.optim.SGD([*policy.parameters(), *value.parameters()], lr=0.25)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    trainer = scenario.train(
        policy=policy, value=value, num_ppo_epochs=3, arguments={"optimizers": (optimizer, schedule)}
    )
    assert logged(trainer, "lr") == [0.25, 0.125, 0.0625]


@pytest.mark.parametrize(
    ("argument", "settings"),
    [("value_model", {"share_value_backbone": True}), ("value_model", {}), ("model", {"peft": True})],
)
def test_an_optimizer_that_lacks_what_the_trainer_makes_is_refused(argument, settings, scenario):
    policy, arguments = tiny.bigram_lm(), {"value_model": None}
    arguments["optimizers"] = torch.optim.SGD(policy.parameters()), None
    if settings.pop("peft", False):
        lora = pytest.importorskip("peft").LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
        arguments["peft_config"] = lora
    with pytest.raises(ValueError, match=f"The optimizer in `optimizers` lacks .* of `{argument}`"):
        scenario.make(policy=policy, arguments=arguments, **settings)


# Of the metrics of TRL 1.12's PPOTrainer, as it logs them.
TRL_METRICS = {
    "eps", "episode", "lr", "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward",
    "objective/scores", "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg",
    "loss/value_avg", "val/clipfrac_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens",
}  # fmt: skip


def test_metrics_have_the_names_of_trls(scenario):
    assert set(scenario.train().state.log_history[0]) >= TRL_METRICS | {"epoch", "step"}
    if TRL_HAS_PPO:
        assert set(scenario.train(PPOTrainer).state.log_history[0]) == TRL_METRICS | {"epoch", "step"}


def test_metrics_by_hand(scenario):
    # A -> C EOS at probabilities 0.5 and 1, under a reference that has 0.25 and 1. The score is 2.
    trainer = scenario.train(
        policy=tiny.bigram_lm({A: {C: 0.5, D: 0.5}, C: {EOS: 1.0}, D: {EOS: 1.0}}),
        ref_model=tiny.bigram_lm({A: {C: 0.25, D: 0.25, E: 0.5}, C: {EOS: 1.0}, D: {EOS: 1.0}}),
        reward=tiny.unigram_classifier({EOS: 2.0}),
        stop_token="eos",
        kl_coef=0.5,
    )
    expected = {
        "objective/kl": math.log(2),
        "objective/entropy": math.log(2),
        "objective/non_score_reward": -0.5 * math.log(2),
        "objective/scores": 2.0,
        "objective/rlhf_reward": 2 - 0.5 * math.log(2),
        "objective/token_scores": 1.0,
        "objective/raw_scores": 2.0,
        "objective/kl_coef": 0.5,
        "completions/repetition": 0.0,
        "completions/mean_length": 2.0,
        "completions/ended": 1.0,
        "val/num_eos_tokens": 4,
        "episode": 4,
        "policy/entropy_avg": math.log(2) / 2,  # the second token of each response is certain
        "policy/approxkl_avg": 0.0,
        "val/ratio": 1.0,
        "val/ratio_var": 0.0,
    }
    assert {name: logged(trainer, name)[0] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_metrics_are_averaged_between_logs(scenario):
    settings = {"policy": tiny.bigram_lm(), "learning_rate": 0.0, "total_episodes": 16, "num_ppo_epochs": 2}
    each, pairs = (scenario.train(logging_steps=steps, **settings) for steps in (2, 4))
    for name in ("objective/scores", "objective/kl", "loss/value_avg", "val/num_eos_tokens"):
        scores = logged(each, name)
        averages = [(scores[0] + scores[1]) / 2, (scores[2] + scores[3]) / 2]
        assert logged(pairs, name) == pytest.approx(averages, abs=1e-5)
    assert len(set(logged(each, "objective/scores"))) > 1
    assert logged(each, "episode") == [4, 8, 12, 16] and logged(pairs, "episode") == [8, 16]


def evaluation(scenario, **settings):
    """A -> C EOS with the score 2, anything else -> D until it is cut off, with the score -1; and a data set of 3 and
    2."""
    settings = {
        "policy": tiny.bigram_lm({A: {C: 1.0}, C: {EOS: 1.0}, B: {D: 1.0}, D: {D: 1.0}}),
        "reward": tiny.unigram_classifier({EOS: 2.0, D: -1.0}),
        "eval_dataset": prompts([A], [B], [A], [B, A], [B]),
        "per_device_eval_batch_size": 2,
        "stop_token": "eos",
        "response_length": 4,
        **settings,
    }
    return scenario.make(**settings)


def test_evaluate_counts_every_row_once(scenario):
    metrics = evaluation(scenario).evaluate()
    assert metrics["eval_objective/scores"] == pytest.approx((2 - 1 + 2 + 2 - 1) / 5)
    assert metrics["eval_completions/mean_length"] == pytest.approx((2 + 4 + 2 + 2 + 4) / 5)
    assert metrics["eval_completions/ended"] == pytest.approx(3 / 5)
    assert metrics["eval_objective/kl"] == pytest.approx(0, abs=1e-6)
    assert {"eval_runtime", "eval_samples_per_second"} <= set(metrics)


def test_evaluation_reports_raw_scores(scenario):
    shaped = {"reward_scale": 7.0, "center_rewards": True, "missing_eos_penalty": 4.0, "reward_density": "sentence"}
    reward = tiny.unigram_reward_model({C: 0.5, EOS: 2.0, D: -1.0})
    metrics = evaluation(scenario, reward=reward, **shaped).evaluate()
    assert metrics["eval_objective/scores"] == pytest.approx((3 * 2.5 - 2 * 4) / 5)


def test_evaluate_takes_several_data_sets(scenario):
    trainer = evaluation(scenario, eval_dataset={"good": prompts([A]), "bad": prompts([B], [B])})
    metrics = trainer.evaluate()
    assert metrics["eval_good_objective/scores"] == pytest.approx(2)
    assert metrics["eval_bad_objective/scores"] == pytest.approx(-1)
    assert trainer.evaluate("bad").keys() == trainer.evaluate(prompts([B])).keys()
    texts = Dataset.from_dict({"prompt": ["a", "b"]})
    assert trainer.evaluate(texts, metric_key_prefix="test")["test_objective/scores"] == pytest.approx(0.5)


def test_evaluation_during_training(scenario):
    trainer = evaluation(
        scenario, eval_strategy="steps", eval_steps=2, total_episodes=12, learning_rate=0.0, eval_on_start=True
    )
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "eval_objective/scores" in entry] == [0, 2, 3]
    assert logged(trainer, "eval_objective/scores") == pytest.approx([0.8] * 3)
    assert trainer.model.training


def test_several_evaluations_during_training(scenario):
    trainer = evaluation(
        scenario, eval_dataset={"good": prompts([A]), "bad": prompts([B])}, eval_strategy="steps", eval_steps=1
    )
    trainer.train()
    assert logged(trainer, "eval_good_objective/scores") == pytest.approx([2])
    assert logged(trainer, "eval_bad_objective/scores") == pytest.approx([-1])


def test_evaluation_of_a_stream(scenario):
    rows = prompts([A], [B], [A], [B, A], [B])
    trainer = evaluation(scenario, eval_dataset=rows.to_iterable_dataset())
    assert trainer.evaluate()["eval_objective/scores"] == pytest.approx(0.8)
    assert len(trainer.generate_completions()) == 5
    with pytest.raises(ValueError, match="The evaluation data set is empty"):
        trainer.evaluate(rows.to_iterable_dataset().filter(lambda row: False))


def test_best_model_is_loaded_at_the_end(scenario):
    # The reward likes C, and learning goes on; what the evaluation likes is the opposite, so the first one is the best.
    trainer = scenario.make(
        policy=tiny.bigram_lm({token: {C: 0.5, D: 0.5} for token in range(16)}),
        reward=lambda completion_ids, **kwargs: [float(ids.count(C)) for ids in completion_ids],
        eval_dataset=prompts(*[[A]] * 16),
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_objective/scores",
        greater_is_better=False,
        per_device_train_batch_size=8,
        total_episodes=24,
        learning_rate=0.3,
    )
    trainer.train()
    scores = logged(trainer, "eval_objective/scores")
    assert scores[0] < scores[2]
    assert trainer.evaluate()["eval_objective/scores"] == scores[0]


@pytest.mark.parametrize("temperature", [0.0, 0.01])
def test_eval_temperature(scenario, temperature):
    policy = tiny.bigram_lm({token: {C: 0.6, D: 0.4} for token in range(16)})
    trainer = scenario.make(policy=policy, eval_dataset=prompts(*[[A]] * 8), eval_temperature=temperature)
    assert set(trainer.generate_completions()["model response"]) == {"c c c c"}


def test_generate_completions_gives_a_table(scenario, capsys):
    trainer = evaluation(scenario)
    table = trainer.generate_completions()
    assert list(table.columns) == ["query", "model response", "score"]
    assert list(table["query"]) == ["a", "b", "a", "b a", "b"]
    assert list(table["model response"]) == ["c <eos>", "d d d d", "c <eos>", "c <eos>", "d d d d"]
    assert list(table["score"]) == pytest.approx([2, -1, 2, 2, -1])
    assert "c <eos>" in capsys.readouterr().out
    assert len(trainer.generate_completions(sampling=True)) == 2
    assert scenario.make().generate_completions() is None


def test_samples_are_printed_during_training(scenario, monkeypatch):
    updates = []
    trainer = evaluation(scenario, total_episodes=24, num_sample_generations=3, num_ppo_epochs=2)
    monkeypatch.setattr(
        trainer, "generate_completions", lambda sampling: updates.append((trainer.state.global_step, sampling))
    )
    trainer.train()
    assert updates == [(2, True), (6, True), (10, True)]


def test_evaluate_without_a_data_set(scenario):
    with pytest.raises(ValueError, match="`evaluate` needs an `eval_dataset`"):
        scenario.make().evaluate()
