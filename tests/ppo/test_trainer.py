"""FineGrainedPPOTrainer beside TRL's PPOTrainer, and by itself.

Where TRL's trainer has a defect, the same scenario runs on both trainers and each must show its own outcome: so the
test is known to tell them apart. TRL's half is skipped on versions of TRL that have no PPOTrainer.
"""

import copy
import gc
import math
import re

import pytest
import torch
from datasets import Dataset
from torch.nn.utils import parameters_to_vector
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

import tiny
from trl_tokenreward import FineGrainedPPOConfig, FineGrainedPPOTrainer, TokenRewardModel
from trl_tokenreward._trl import TRL_HAS_PPO, PPOConfig, PPOTrainer
from trl_tokenreward.nn import unpadding as packing
from trl_tokenreward.nn.masked import masked_whiten
from trl_tokenreward.ppo.batches import packed_groups
from trl_tokenreward.ppo.functional import hold_mean_length


PAD, EOS = 0, 1
A, B, C, D, E, F = range(3, 9)
PERIOD = 15


def ours_and_trls(right, wrong):
    """Run the test on both trainers; `expected` is what each of them must show."""
    return pytest.mark.parametrize(
        ("trainer_class", "expected"),
        [
            pytest.param(FineGrainedPPOTrainer, right, id="ours"),
            pytest.param(
                PPOTrainer,
                wrong,
                id="TRL",
                marks=pytest.mark.skipif(not TRL_HAS_PPO, reason="this version of TRL has no PPOTrainer"),
            ),
        ],
    )


def prompts(*rows):
    return Dataset.from_dict({"input_ids": [list(row) for row in rows]})


# Token scores as they are, so that they can be followed by hand.
RAW = {
    "token_score_transform": "none",
    "reward_scale": 1.0,
    "center_rewards": False,
    "reward_clip": math.inf,
    "hold_length": False,
}


class Scenario:
    """Makes trainers of either class. Plain SGD and no KL penalty, so that what a policy learns is known by hand."""

    def __init__(self, directory):
        self.directory = str(directory)

    def make(
        self,
        trainer_class=FineGrainedPPOTrainer,
        policy=None,
        reward=None,
        value=None,
        dataset=None,
        tokenizer=None,
        ref_model=None,
        eval_dataset=None,
        callbacks=None,
        arguments=(),
        **settings,
    ):
        settings = {
            "output_dir": self.directory,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "num_sample_generations": 0,
            "logging_steps": 1,
            "optim": "sgd",
            "learning_rate": 0.1,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 4,
            "num_ppo_epochs": 1,
            "max_grad_norm": 1e9,
            "temperature": 1.0,
            "kl_coef": 0.0,
            "response_length": 4,
            **settings,
        }
        if "total_episodes" not in settings and "num_train_epochs" not in settings and "max_steps" not in settings:
            batch_size = settings["per_device_train_batch_size"] * settings.get("gradient_accumulation_steps", 1)
            settings["total_episodes"] = batch_size
        config_class = PPOConfig
        if trainer_class is FineGrainedPPOTrainer:
            config_class, settings = FineGrainedPPOConfig, {**RAW, **settings}
        arguments = {
            "args": config_class(**settings),
            "processing_class": tokenizer or tiny.word_tokenizer(),
            "model": policy or tiny.bigram_lm(),
            "ref_model": ref_model,
            "reward_model": reward or tiny.unigram_classifier({token: token / 10 for token in range(16)}),
            "value_model": value or tiny.unigram_classifier(),
            "train_dataset": dataset or prompts(*[[A]] * 12),
            "eval_dataset": eval_dataset,
            "callbacks": callbacks,
            **dict(arguments),
        }
        return trainer_class(**arguments)

    def train(self, *args, **kwargs):
        trainer = self.make(*args, **kwargs)
        trainer.train()
        return trainer


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


def weights(model):
    return parameters_to_vector(model.parameters()).detach().clone()


def logged(trainer, name):
    """The values that were logged under a name, in order."""
    return [float(entry[name]) for entry in trainer.state.log_history if name in entry]


def next_token_probabilities(policy, token):
    with torch.no_grad():
        return policy(torch.tensor([[token]])).logits[0, -1].softmax(-1)


def training_forwards(module, look):
    """A list that gets `look(inputs, output)` of each forward pass of `module` that builds a graph."""
    seen = []

    def hook(module, args, kwargs, output):
        if torch.is_grad_enabled():
            seen.append(look({"args": args, **kwargs}, output))

    module.register_forward_hook(hook, with_kwargs=True)
    return seen


# --- 1. mini-batches -----------------------------------------------------------------------------------------------


@ours_and_trls(right=[2, 4, 8], wrong=[2, 2, 2])
def test_mini_batches_are_optimizer_steps_under_gradient_accumulation(
    scenario, optimizer_steps, trainer_class, expected
):
    taken = []
    for num_mini_batches in (1, 2, 4):
        optimizer_steps.clear()
        scenario.train(
            trainer_class,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=4,
            num_ppo_epochs=2,
            num_mini_batches=num_mini_batches,
        )
        taken.append(len(optimizer_steps))
    assert taken == expected


# --- 2. the end of the data set ------------------------------------------------------------------------------------


@ours_and_trls(right=4, wrong=16)
def test_a_data_set_of_one_batch(scenario, optimizer_steps, trainer_class, expected):
    scenario.train(
        trainer_class,
        dataset=prompts([A], [B], [C], [D]),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        num_ppo_epochs=4,
    )
    assert len(optimizer_steps) == expected


# --- 3. settings that are ignored ----------------------------------------------------------------------------------


@ours_and_trls(right=True, wrong=False)
def test_max_grad_norm(scenario, trainer_class, expected):
    policy, value = tiny.bigram_lm(), tiny.unigram_classifier()
    before = torch.cat([weights(policy), weights(value)])
    scenario.train(trainer_class, policy=policy, value=value, max_grad_norm=1e-4, learning_rate=1.0)
    moved = (torch.cat([weights(policy), weights(value)]) - before).norm()
    assert moved > 0
    assert bool(moved <= 1.01e-4) == expected


@ours_and_trls(right=(2, 2), wrong=(1, 1))
def test_gradient_checkpointing_runs_every_layer_twice(scenario, trainer_class, expected):
    policy, value = tiny.bigram_lm(), tiny.unigram_classifier()
    passes = [training_forwards(model.model.layers[0].input_layernorm, lambda *_: 1) for model in (policy, value)]
    scenario.train(trainer_class, policy=policy, value=value, gradient_checkpointing=True)
    assert tuple(map(len, passes)) == expected


@ours_and_trls(right={torch.bfloat16}, wrong={torch.float32})
def test_bf16_is_mixed_precision(scenario, trainer_class, expected):
    policy = tiny.bigram_lm()
    dtypes = training_forwards(policy.model.layers[0].mlp.up_proj, lambda inputs, output: output.dtype)
    scenario.train(trainer_class, policy=policy, bf16=True)
    assert set(dtypes) == expected
    assert policy.dtype == torch.float32


@ours_and_trls(right=2, wrong=4)
def test_logging_steps(scenario, trainer_class, expected):
    trainer = scenario.train(trainer_class, total_episodes=16, logging_steps=2)
    assert len(logged(trainer, "objective/kl")) == expected


# --- 4. padding ----------------------------------------------------------------------------------------------------


def outcome(scenario, *args, **kwargs):
    """Train with pad = eos; what becomes of the numbers?"""
    policy = tiny.bigram_lm({A: {EOS: 1.0}, B: {C: 0.5, D: 0.5}, C: {EOS: 1.0}, D: {EOS: 1.0}}, pad_token_id=None)
    try:
        trainer = scenario.train(
            *args, policy=policy, tokenizer=tiny.word_tokenizer("<eos>"), stop_token="eos", **kwargs
        )
    except ValueError as error:
        return str(error)[:27]
    numbers = [*weights(policy), *logged(trainer, "loss/policy_avg")]
    return "finite" if all(math.isfinite(number) for number in numbers) else "NaN"


@ours_and_trls(right="finite", wrong="The sum of the mask is zero")
def test_all_responses_are_eos(scenario, trainer_class, expected):
    assert outcome(scenario, trainer_class, dataset=prompts(*[[A]] * 12)) == expected


@ours_and_trls(right="finite", wrong="NaN")
def test_a_micro_batch_of_responses_that_are_eos(scenario, trainer_class, expected):
    rows = [[A], [B]] * 3
    batches = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 6, "total_episodes": 6}
    assert outcome(scenario, trainer_class, dataset=prompts(*rows * 2), **batches) == expected


@ours_and_trls(right="finite", wrong="NaN")
def test_a_single_token_to_train_on(scenario, trainer_class, expected):
    # TRL's PPO finds no token in three of the responses and one in the fourth; its variance is 0 / 0.
    assert outcome(scenario, trainer_class, dataset=prompts([A], [A], [A], [B])) == expected


@ours_and_trls(right=True, wrong=False)
def test_the_end_of_a_response_is_learned_where_pad_is_eos(scenario, trainer_class, expected):
    policy = tiny.bigram_lm({A: {A: 0.7, EOS: 0.3}}, pad_token_id=None)
    scenario.train(
        trainer_class,
        policy=policy,
        reward=tiny.unigram_classifier({EOS: 1.0, A: -1.0}),
        tokenizer=tiny.word_tokenizer("<eos>"),
        stop_token="eos",
        per_device_train_batch_size=8,
        total_episodes=24,
        learning_rate=0.2,
    )
    assert bool(next_token_probabilities(policy, A)[EOS] > 0.5) == expected


@ours_and_trls(right=True, wrong=False)
def test_pad_may_be_sampled(scenario, trainer_class, expected):
    # Every token has probability 1/16, so eight tokens have 8 log 16 nats, whatever they are.
    settings = {"per_device_train_batch_size": 16, "response_length": 8}
    trainer = scenario.train(trainer_class, dataset=prompts(*[[A]] * 16), **settings)
    assert (logged(trainer, "objective/entropy")[0] == pytest.approx(8 * math.log(16))) == expected


# --- 5. where the score goes, and what comes after a truncated response --------------------------------------------


@ours_and_trls(right=True, wrong=False)
def test_the_score_is_paid_for_the_last_real_token(scenario, trainer_class, expected):
    # With lam = 0 and a value model that says 0, an action is reinforced by the score on its own slot alone. Responses
    # to A end, and earn 1; those to B do not, and earn 0. Where the score lands after the end, nothing is ever
    # reinforced.
    policy = tiny.bigram_lm({A: {C: 1.0}, C: {EOS: 0.5, D: 0.5}, D: {EOS: 1.0}, B: {B: 1.0}})
    before = next_token_probabilities(policy, C)[EOS]
    scenario.train(
        trainer_class,
        policy=policy,
        reward=tiny.unigram_classifier({EOS: 1.0}),
        dataset=prompts(*[[A], [A], [B], [A], [A], [A], [B], [A]] * 2),
        stop_token="eos",
        per_device_train_batch_size=8,
        lam=0.0,
        vf_coef=0.0,
    )
    assert bool(next_token_probabilities(policy, C)[EOS] > before + 1e-3) == expected


@ours_and_trls(right=True, wrong=False)
def test_a_truncated_response_goes_on_with_its_value(scenario, trainer_class, expected):
    # All states are worth 5 and nothing is ever earned, so no action is better than another, the last one included.
    policy = tiny.bigram_lm()
    before = weights(policy)
    scenario.train(
        trainer_class,
        policy=policy,
        reward=tiny.unigram_classifier(),
        value=tiny.unigram_classifier(dict.fromkeys(range(16), 5.0)),
        **({"bootstrap_truncated": True} if trainer_class is FineGrainedPPOTrainer else {}),
    )
    assert torch.allclose(weights(policy), before, rtol=0, atol=1e-6) == expected


def test_bootstrap_is_for_truncated_responses_only(scenario):
    policy = tiny.bigram_lm({A: {C: 1.0}, C: {EOS: 1.0}, B: {D: 1.0}, D: {D: 1.0}})
    settings = {
        "policy": policy,
        "reward": tiny.unigram_classifier({EOS: 1.0}),
        "value": tiny.unigram_classifier({A: 0.5, B: 0.5, C: 0.25, D: 2.0, EOS: 9.0}),
        "dataset": prompts([A], [B]),
        "per_device_train_batch_size": 2,
        "stop_token": "eos",
        "response_length": 3,
        "lam": 1.0,
    }
    returns = {}
    for bootstrap in (False, True):
        rollout = scenario.make(**settings, bootstrap_truncated=bootstrap).collect_rollout(0)
        returns[bootstrap] = dict(zip(rollout.prompt_ids[:, 0].tolist(), rollout.returns.tolist(), strict=True))
    assert returns[False] == {A: pytest.approx([1, 1, 0]), B: pytest.approx([0, 0, 0])}
    assert returns[True] == {A: pytest.approx([1, 1, 0]), B: pytest.approx([2, 2, 2])}


# --- 6. and 7. stop tokens -----------------------------------------------------------------------------------------


@ours_and_trls(right=[0.0], wrong=[-3.0])
def test_missing_eos_penalty_looks_at_the_stop_token_in_use(scenario, trainer_class, expected):
    trainer = scenario.train(
        trainer_class,
        policy=tiny.bigram_lm({A: {PERIOD: 1.0}}),
        reward=tiny.unigram_classifier(),
        stop_token_id=PERIOD,
        missing_eos_penalty=3.0,
    )
    assert logged(trainer, "objective/scores") == expected


def test_missing_eos_penalty_is_subtracted_on_the_last_token(scenario):
    policy = tiny.bigram_lm({A: {PERIOD: 1.0}, B: {EOS: 1.0}, EOS: {C: 1.0}, C: {C: 1.0}})
    trainer = scenario.make(
        policy=policy,
        reward=tiny.unigram_classifier({C: 0.5}),
        dataset=prompts([A], [B]),
        per_device_train_batch_size=2,
        stop_token_id=PERIOD,
        missing_eos_penalty=3.0,
        response_length=3,
    )
    rollout = trainer.collect_rollout(0)
    scores = dict(zip(rollout.prompt_ids[:, 0].tolist(), rollout.token_level_scores.tolist(), strict=True))
    assert scores == {A: pytest.approx([0, 0, 0]), B: pytest.approx([0, 0, -2.5])}


@ours_and_trls(right=[4.0], wrong=[6.0])
def test_eos_is_counted_once_without_a_pad_token_in_the_generation_config(scenario, trainer_class, expected):
    policy = tiny.bigram_lm({A: {EOS: 1.0}, B: {C: 1.0}, C: {EOS: 1.0}})
    policy.generation_config.pad_token_id = None
    trainer = scenario.train(
        trainer_class, policy=policy, dataset=prompts(*[[A]] * 2, *[[B]] * 2), stop_token="eos", seed=1
    )
    assert logged(trainer, "val/num_eos_tokens") == expected


# --- 8. and 9. what distorts the log-probabilities of a rollout ----------------------------------------------------


def attentive_policy(**kwargs):
    """A policy whose attention matters."""
    return tiny.causal_lm(vocab_size=16, initializer_range=0.3, **kwargs)


@ours_and_trls(right=True, wrong=False)
def test_policy_and_reference_run_without_dropout(scenario, trainer_class, expected):
    policy, reference = attentive_policy(attention_dropout=0.5), attentive_policy(attention_dropout=0.5)
    trainer = scenario.train(trainer_class, policy=policy.train(), ref_model=reference.train())
    assert (logged(trainer, "objective/kl")[0] == pytest.approx(0, abs=1e-5)) == expected
    # Nor are there two answers to one question afterwards, while the policy is trained.
    policy.train()
    ids = torch.tensor([[A, B, C, D]])
    assert torch.equal(policy(ids).logits, policy(ids).logits) == expected


@pytest.mark.parametrize("setting", [{"repetition_penalty": 2.0}, {"no_repeat_ngram_size": 1}])
@ours_and_trls(right=True, wrong=False)
def test_the_generation_config_has_no_say_in_log_probabilities(scenario, setting, trainer_class, expected):
    policy = attentive_policy()
    policy.generation_config.update(**setting)
    trainer = scenario.train(trainer_class, policy=policy)
    assert (logged(trainer, "val/ratio")[0] == pytest.approx(1, abs=1e-5)) == expected
    assert (logged(trainer, "objective/kl")[0] == pytest.approx(0, abs=1e-5)) == expected


# --- 10. the value model is saved ----------------------------------------------------------------------------------


@ours_and_trls(right=True, wrong=False)
def test_the_value_model_is_saved(scenario, tmp_path, trainer_class, expected):
    value = tiny.unigram_classifier()
    trainer = scenario.train(trainer_class, value=value)
    trainer.save_model(str(tmp_path / "saved"))
    assert torch.equal(weights(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), weights(trainer.policy_model))
    folders = {path.parent for path in (tmp_path / "saved").rglob("*.safetensors")}
    assert (folders == {tmp_path / "saved", tmp_path / "saved" / "value_model"}) == expected
    if expected:
        saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved" / "value_model")
        assert torch.equal(weights(saved), weights(value))


# --- 11. prompts ---------------------------------------------------------------------------------------------------


def outcome_of(train, *args, **kwargs):
    try:
        train(*args, **kwargs)
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        return type(error).__name__
    return "trained"


@ours_and_trls(right="trained", wrong="ValueError")
def test_prompts_may_be_texts(scenario, trainer_class, expected):
    dataset = Dataset.from_dict({"prompt": ["a", "b c", "d e f", "g"]})
    assert outcome_of(scenario.train, trainer_class, dataset=dataset) == expected


@ours_and_trls(right="trained", wrong="ValueError")
def test_prompts_may_be_messages(scenario, trainer_class, expected):
    tokenizer = tiny.word_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    dataset = Dataset.from_dict({"prompt": [[{"role": "user", "content": word}] for word in "abcd"]})
    assert outcome_of(scenario.train, trainer_class, dataset=dataset, tokenizer=tokenizer) == expected


@ours_and_trls(right="trained", wrong="TypeError")
def test_prompts_may_be_a_stream(scenario, trainer_class, expected):
    assert outcome_of(scenario.train, trainer_class, dataset=prompts(*[[A]] * 12).to_iterable_dataset()) == expected


# --- 12. PEFT ------------------------------------------------------------------------------------------------------


def with_adapter(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("role", ["reward", "value"])
@ours_and_trls(right="trained", wrong="ValueError")
def test_reward_and_value_model_may_have_adapters(scenario, role, trainer_class, expected):
    # TRL's PPO then runs the whole classifier, which has no use for a batch without a pad token in its configuration.
    torch.manual_seed(0)
    models = {role: with_adapter(tiny.unigram_classifier(pad_token_id=None))}
    assert outcome_of(scenario.train, trainer_class, **models) == expected


# --- 13. whitening over all processes: see tests/ppo/test_distributed.py ----------------------------------------------

# --- 14. statistics ------------------------------------------------------------------------------------------------


@ours_and_trls(right=True, wrong=False)
def test_statistics_are_means_over_real_tokens(scenario, trainer_class, expected):
    policy = tiny.bigram_lm({token: {EOS: 0.4, C: 0.3, D: 0.3} for token in range(16)})
    seen = training_forwards(policy.base_model, lambda inputs, _: (inputs, copy.deepcopy(policy.state_dict())))
    trainer = scenario.train(
        trainer_class,
        policy=policy,
        reward=tiny.unigram_classifier({EOS: 1.0}),
        stop_token="eos",
        num_ppo_epochs=2,
        logging_steps=2 if trainer_class is FineGrainedPPOTrainer else 1,
        response_length=3,
    )
    (_, old), (inputs, new) = seen
    ids = inputs["input_ids"]
    mask = ids[:, 1:] != PAD  # which is never sampled here
    assert not mask.all()  # else there would be nothing to tell apart
    logps = []
    for state in (old, new):
        policy.load_state_dict(state)
        with torch.no_grad():
            logps.append(policy(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)[mask])
    difference = logps[1] - logps[0]
    # The first of the two passes has not moved yet.
    approxkl, ratio = (0.5 * difference.square()).mean() / 2, (1 + difference.exp().mean()) / 2
    assert approxkl > 1e-3
    assert (logged(trainer, "policy/approxkl_avg")[0] == pytest.approx(float(approxkl), rel=1e-3)) == expected
    assert (logged(trainer, "val/ratio")[0] == pytest.approx(float(ratio), rel=1e-5)) == expected


# --- 15. evaluation ------------------------------------------------------------------------------------------------


@ours_and_trls(right=True, wrong=False)
def test_evaluation_samples_at_the_training_temperature(scenario, capsys, trainer_class, expected):
    # The table shows five responses of eight tokens; D is drawn four times in ten at temperature 1, never at 0.01.
    policy = tiny.bigram_lm({token: {C: 0.6, D: 0.4} for token in range(16)})
    trainer = scenario.make(trainer_class, policy=policy, eval_dataset=prompts(*[[A]] * 8), response_length=8)
    trainer.generate_completions()
    assert bool(re.search(r"\bd\b", capsys.readouterr().out)) == expected


# --- 16. and 17. what rewards --------------------------------------------------------------------------------------


@ours_and_trls(right=[2.0], wrong=[-1.0])
def test_the_reward_model_may_have_another_tokenizer(scenario, trainer_class, expected):
    reward_tokenizer = tiny.word_tokenizer(words="lkjihgfedcba.")
    c = reward_tokenizer.convert_tokens_to_ids("c")
    assert c != C
    ours = {"reward_processing_class": reward_tokenizer} if trainer_class is FineGrainedPPOTrainer else {}
    trainer = scenario.train(
        trainer_class,
        policy=tiny.bigram_lm({A: {B: 1.0}, B: {D: 1.0}, D: {C: 1.0}}),
        reward=tiny.unigram_classifier({c: 2.0, C: -1.0}),
        response_length=3,
        arguments=ours,
    )
    assert logged(trainer, "objective/scores") == pytest.approx(expected)


@ours_and_trls(right="trained", wrong="AttributeError")
def test_the_reward_may_be_a_function(scenario, trainer_class, expected):
    def reward(completions, **kwargs):
        return [float(len(completion)) for completion in completions]

    assert outcome_of(scenario.train, trainer_class, reward=reward) == expected


# --- a rollout, worked out by hand ---------------------------------------------------------------------------------


def token_reward_model(scores=None, sequence_scores=None):
    """A TokenRewardModel whose token scores, and prefix scores, depend on the token alone."""
    model = TokenRewardModel.from_backbone(tiny.unigram_classifier(sequence_scores))
    model.token_score.weight.data = torch.tensor([[(scores or {}).get(token, 0.0) / 4 for token in range(16)]])
    return model


def of_prompt(rollout, first_token):
    """The row of a rollout whose prompt begins with a token."""
    starts = [ids[mask.bool()][0].item() for ids, mask in zip(rollout.prompt_ids, rollout.prompt_mask, strict=True)]
    row = starts.index(first_token)
    return type(rollout)(*(x[row] for x in rollout))


@pytest.mark.parametrize("pad_token", ["<pad>", "<eos>"])
def test_rollout_by_hand(scenario, pad_token):
    # A -> C EOS, and B -> D E F, cut off. Policy and reference differ in the choice after A and B alone.
    certain = {C: {EOS: 1.0}, D: {E: 1.0}, E: {F: 1.0}}
    trainer = scenario.make(
        policy=tiny.bigram_lm({A: {C: 1.0}, B: {D: 1.0}, **certain}),
        ref_model=tiny.bigram_lm({A: {C: 0.5, D: 0.5}, B: {D: 0.25, C: 0.75}, **certain}),
        reward=token_reward_model({C: 1.0, EOS: 0.5, D: -1.0, E: 2.0, F: 0.25}),
        value=tiny.unigram_classifier({A: 0.3, C: 0.2, B: 0.1, D: 0.4, E: 0.6, F: 0.7, EOS: 9.0, PAD: 9.0}),
        dataset=prompts([A], [E, E, B]),
        tokenizer=tiny.word_tokenizer(pad_token),
        per_device_train_batch_size=2,
        stop_token="eos",
        response_length=3,
        kl_coef=0.1,
        gamma=0.9,
        lam=0.5,
        missing_eos_penalty=0.05,
        bootstrap_truncated=True,
    )
    rollout = trainer.collect_rollout(0)
    ended, cut_off = of_prompt(rollout, A), of_prompt(rollout, E)

    def close(tensor, values):
        torch.testing.assert_close(tensor, torch.tensor(values), rtol=0, atol=1e-5)

    assert ended.prompt_mask.tolist() == [0, 0, 1]
    assert ended.completion_ids.tolist() == [C, EOS, trainer.processing_class.pad_token_id]
    assert cut_off.completion_ids.tolist() == [D, E, F]
    assert ended.completion_mask.tolist() == [1, 1, 0] and cut_off.completion_mask.tolist() == [1, 1, 1]
    assert bool(ended.ended) and not cut_off.ended
    close(ended.per_token_logps, [0.0, 0, 0])
    close(ended.kl, [0.693147, 0, 0])  # log 1/0.5
    close(cut_off.kl, [1.386294, 0, 0])  # log 1/0.25
    close(ended.token_level_scores, [1.0, 0.5, 0])
    close(cut_off.token_level_scores, [-1.0, 2, 0.2])
    close(ended.token_level_rewards, [0.9306853, 0.5, 0])
    close(cut_off.token_level_rewards, [-1.1386294, 2, 0.2])
    close(ended.values[:2], [0.3, 0.2])
    close(cut_off.values, [0.1, 0.4, 0.6])
    close(cut_off.final_values, 0.7)
    # From the right: 0.5 - 0.2 = 0.3; then 0.9306853 + 0.9 * 0.2 - 0.3 + 0.45 * 0.3.
    close(ended.returns, [0.9456853 + 0.3, 0.3 + 0.2, 0])
    # 0.2 + 0.9 * 0.7 - 0.6 = 0.23; 2 + 0.9 * 0.6 - 0.4 + 0.45 * 0.23 = 2.2435;
    # -1.1386294 + 0.9 * 0.4 - 0.1 + 0.45 * 2.2435 = 0.1309456.
    close(cut_off.returns, [0.1309456 + 0.1, 2.2435 + 0.4, 0.23 + 0.6])
    # Whitened over the five: their mean is 0.7700262, their standard deviation 0.8835946.
    close(ended.advantages, [0.198801, -0.531947, 0])
    close(cut_off.advantages, [-0.723273, 1.667590, -0.611169])


def test_k3_is_the_other_estimator(scenario):
    trainer = scenario.make(
        policy=tiny.bigram_lm({A: {C: 1.0}}),
        ref_model=tiny.bigram_lm({A: {C: 0.5, D: 0.5}}),
        response_length=1,
        kl_estimator="k3",
    )
    # q/p - 1 - log q/p = 0.5 - 1 + 0.693147
    torch.testing.assert_close(trainer.collect_rollout(0).kl, torch.full((4, 1), 0.193147), rtol=0, atol=1e-5)


def test_the_policy_is_trained_at_the_temperature_that_it_is_sampled_at(scenario):
    # Probabilities 0.8 and 0.2 become 2/3 and 1/3 at temperature 2, and 1/2 and 1/2 stay as they are.
    trainer = scenario.make(
        policy=tiny.bigram_lm({A: {C: 0.8, D: 0.2}}),
        ref_model=tiny.bigram_lm({A: {C: 0.5, D: 0.5}}),
        dataset=prompts(*[[A]] * 8),
        per_device_train_batch_size=8,
        response_length=1,
        temperature=2.0,
    )
    rollout = trainer.collect_rollout(0)
    is_c = rollout.completion_ids == C
    assert 0 < is_c.sum() < 8
    # The other 14 tokens have 1e-6 each.
    expected = torch.where(is_c, math.log(2 / 3), math.log(1 / 3))
    torch.testing.assert_close(rollout.per_token_logps, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(rollout.kl, expected - math.log(1 / 2), rtol=0, atol=1e-4)
    trainer.train()
    assert logged(trainer, "val/ratio") == pytest.approx([1.0], abs=1e-5)
    assert logged(trainer, "policy/entropy_avg") == pytest.approx([math.log(3) - 2 / 3 * math.log(2)], abs=1e-3)


def test_the_score_of_a_token_moves_its_own_advantage_alone_where_lam_is_0(scenario):
    def rollout(bonus):
        def reward(completion_ids, **kwargs):
            return [[1.0, 0.0, bonus, 1.0] for _ in completion_ids]

        # Whitening moves all advantages, so the raw ones are looked at.
        result = scenario.make(reward=reward, lam=0.0).collect_rollout(0)
        return result.returns - result.values

    moved = (rollout(0.0) != rollout(5.0)).any(0)
    assert moved.tolist() == [False, False, True, False]


def test_whitened_rewards_have_unit_variance(scenario):
    reward = token_reward_model({token: token / 3 for token in range(16)})
    rollout = scenario.make(reward=reward, whiten_rewards=True, kl_coef=0.1).collect_rollout(0)
    plain = scenario.make(reward=reward, kl_coef=0.1).collect_rollout(0)
    assert rollout.token_level_rewards.var() == pytest.approx(1, abs=1e-5)
    assert rollout.token_level_rewards.mean() == pytest.approx(float(plain.token_level_rewards.mean()), abs=1e-5)


def test_values_default_to_a_copy_of_the_reward_model(scenario):
    reward = token_reward_model({C: 1.0}, {C: 2.0})
    before = weights(reward)
    trainer = scenario.make(reward=reward, dataset=prompts([C]), arguments={"value_model": None})
    assert trainer.collect_rollout(0).values[:, 0].tolist() == [2.0] * 4
    trainer.train()
    assert torch.equal(weights(reward), before)
    assert not torch.equal(weights(trainer.value_model), before)


# --- padding is inert ----------------------------------------------------------------------------------------------


def test_padding_changes_nothing(scenario):
    dataset = prompts([A, B, C], [D], [E, F], [B, B])

    def collator(rows):
        width = 7
        return {
            "input_ids": torch.tensor([[F] * (width - len(r["input_ids"])) + r["input_ids"] for r in rows]),
            "attention_mask": torch.tensor(
                [[0] * (width - len(r["input_ids"])) + [1] * len(r["input_ids"]) for r in rows]
            ),
        }

    def rollout(**kwargs):
        return scenario.make(
            policy=attentive_policy(),
            ref_model=attentive_policy(seed=1),
            reward=tiny.sequence_classifier(vocab_size=16, initializer_range=0.3),
            value=tiny.sequence_classifier(seed=2, vocab_size=16, initializer_range=0.3),
            dataset=dataset,
            stop_token="eos",
            response_length=12,
            **kwargs,
        ).collect_rollout(0)

    plain = rollout()
    assert 0 < plain.completion_mask.float().mean() < 1
    for other in (
        rollout(tokenizer=tiny.word_tokenizer("<eos>")),
        rollout(arguments={"data_collator": collator}),
        rollout(local_rollout_forward_batch_size=1),
    ):
        for name in ("completion_mask", "ended"):
            assert torch.equal(getattr(plain, name), getattr(other, name))
        real = plain.completion_mask.bool()
        assert torch.equal(plain.completion_ids[real], other.completion_ids[real])
        for name in ("per_token_logps", "ref_per_token_logps", "values", "token_level_scores", "advantages", "returns"):
            torch.testing.assert_close(getattr(plain, name)[real], getattr(other, name)[real], rtol=2e-6, atol=2e-6)


def test_the_models_need_not_know_the_pad_token(scenario):
    # As where a script adds one to the tokenizer and leaves the embeddings as they are.
    tokenizer = tiny.word_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 16
    settings = {"dataset": prompts([A], [B, B]), "response_length": 8, "stop_token": "eos", "total_episodes": 8}
    settings["policy"] = tiny.bigram_lm({token: {EOS: 0.4, C: 0.6} for token in range(16)})
    trainer = scenario.train(tokenizer=tokenizer, reward=token_reward_model({C: 1.0}), **settings)
    assert not trainer.collect_rollout(0).completion_mask.all()
    trainer.save_model()
    AutoModelForCausalLM.from_pretrained(scenario.directory)  # whose configuration does not know it either


def make_uneven(scenario):
    """A trainer with prompts and completions of unequal lengths."""
    return scenario.make(
        policy=tiny.bigram_lm({token: {EOS: 0.3, C: 0.4, D: 0.3} for token in range(16)}),
        stop_token="eos",
        dataset=prompts([A, B], [B], [C], [D, D, D]),
        response_length=8,
    )


def test_junk_in_masked_places_leaves_loss_and_gradient_alone(scenario):
    trainer = make_uneven(scenario)
    rollout = trainer.collect_rollout(0)
    masked = ~rollout.completion_mask.bool()
    assert masked.any()
    junk = rollout._replace(
        prompt_ids=torch.where(rollout.prompt_mask.bool(), rollout.prompt_ids, F),
        completion_ids=torch.where(masked, F, rollout.completion_ids),
        **{
            name: torch.where(masked, 3.0, getattr(rollout, name))
            for name in ("per_token_logps", "values", "advantages", "returns")
        },
    )
    results = []
    for contents in (rollout, junk):
        trainer.model.zero_grad()
        (batch,) = packed_groups(contents, torch.arange(4), trainer.accelerator, 4)
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
        results.append((loss.detach(), gradient))
    assert results[0][1].abs().max() > 0
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-7)


# --- how rewards are spread ----------------------------------------------------------------------------------------

TWO_SENTENCES = {A: {C: 1.0}, C: {PERIOD: 1.0}, PERIOD: {D: 1.0}, D: {EOS: 1.0}}


def scores_of(scenario, reward, **settings):
    trainer = scenario.make(
        policy=tiny.bigram_lm(TWO_SENTENCES), reward=reward, stop_token="eos", response_length=6, **settings
    )
    rollout = trainer.collect_rollout(0)
    assert rollout.completion_ids[0].tolist() == [C, PERIOD, D, EOS]
    return rollout.token_level_scores[0].tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 2, -4, 0.5]),
        ({"reward_density": "token"}, [1, 2, -4, 0.5]),
        ({"reward_density": "sentence"}, [0, 3, 0, -3.5]),
        ({"reward_density": "sequence"}, [0, 0, 0, -0.5]),
        ({"token_score_transform": "log_sigmoid"}, [-0.313262, -0.126928, -4.018150, -0.474077]),
        ({"token_score_transform": "log_sigmoid", "reward_scale": 2.0, "reward_clip": 1.0}, [-0.626523, -0.253856, -1, -0.948154]),
        ({"sequence_score_coef": 0.5}, [1, 2, -4, 4]),
        ({"sequence_score_coef": 0.5, "reward_scale": 2.0, "reward_clip": 3.0}, [2, 3, -3, 2.5]),
        ({"sequence_score_coef": 0.5, "center_rewards": True}, [1.125, 2.125, -3.875, 0.625]),
        ({"reward_signal": "sequence_score"}, [0, 0, 0, 7]),
        # Prefix scores 5, 3, 9, 7: their differences, from 0 on.
        ({"reward_density": "potential"}, [5, -2, 6, -2]),
        ({"reward_signal": "sequence_score", "reward_density": "potential"}, [5, -2, 6, -2]),
        ({"reward_signal": "sequence_score", "reward_density": "sequence"}, [0, 0, 0, 7]),
        ({"reward_scale": 2.0}, [2, 4, -8, 1]),
        ({"center_rewards": True}, [1.125, 2.125, -3.875, 0.625]),  # the mean is -0.125
        ({"reward_clip": 1.5}, [1, 1.5, -1.5, 0.5]),
        ({"reward_density": "potential", "reward_clip": 4.0}, [5, -2, 6, -5]),
        ({"reward_signal": "sequence_score", "reward_scale": 0.5}, [0, 0, 0, 3.5]),
        ({"reward_signal": "sequence_score", "center_rewards": True}, [0, 0, 0, 0]),
    ],
)  # fmt: skip
def test_reward_settings_by_hand(scenario, settings, expected):
    reward = token_reward_model({C: 1.0, PERIOD: 2.0, D: -4.0, EOS: 0.5}, {C: 5.0, PERIOD: 3.0, D: 9.0, EOS: 7.0})
    assert scores_of(scenario, reward, **settings) == pytest.approx(expected, abs=1e-5)


def test_the_defaults_are_those_for_token_scores_of_a_model(scenario):
    left = dict.fromkeys(RAW)
    trainer = scenario.make(reward=token_reward_model({C: 1.0}), stop_token="eos", **left)
    assert (trainer.args.token_score_transform, trainer.args.reward_scale) == ("log_sigmoid", 0.2)
    assert trainer.args.center_rewards and trainer.args.hold_length and trainer.args.reward_clip == 1.0
    for reward in (tiny.unigram_classifier(), lambda completions, **kwargs: [1.0] * len(completions)):
        args = scenario.make(reward=reward, stop_token="eos", **left).args
        assert (args.token_score_transform, args.reward_scale, args.center_rewards) == ("none", 1.0, False)
        assert not args.hold_length and args.reward_clip == math.inf


def test_log_probabilities_are_of_tokens_alone(scenario):
    with pytest.raises(ValueError, match="`token_score_transform` has no effect on a sequence score"):
        scenario.make(reward=tiny.unigram_classifier(), token_score_transform="log_sigmoid")


def test_a_sequence_term_needs_both_scores(scenario):
    for reward in (tiny.unigram_classifier(), lambda completions, **kwargs: [1.0] * len(completions)):
        with pytest.raises(ValueError, match="`sequence_score_coef` adds the sequence score"):
            scenario.make(reward=reward, sequence_score_coef=0.5)


def test_the_kl_coefficient_is_adapted(scenario):
    """log 2 nats in each update, which is more than the target: the coefficient grows by a fifth each time."""
    settings = {
        "policy": tiny.bigram_lm({A: {C: 0.5, D: 0.5}, C: {EOS: 1.0}, D: {EOS: 1.0}}),
        "ref_model": tiny.bigram_lm({A: {C: 0.25, D: 0.25, E: 0.5}, C: {EOS: 1.0}, D: {EOS: 1.0}}),
        "stop_token": "eos",
        "kl_coef": 0.5,
        "learning_rate": 0.0,
        "total_episodes": 12,
    }
    trainer = scenario.train(kl_target=0.5, **settings)
    assert logged(trainer, "objective/kl_coef") == pytest.approx([0.5, 0.6, 0.72])
    assert logged(trainer, "objective/non_score_reward") == pytest.approx(
        [-coef * math.log(2) for coef in (0.5, 0.6, 0.72)], abs=1e-5
    )
    trainer.train()  # from the beginning
    assert logged(trainer, "objective/kl_coef")[-3:] == pytest.approx([0.5, 0.6, 0.72])
    for target in (0.8, None):
        assert logged(scenario.train(kl_target=target, **settings), "objective/kl_coef") == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("per_token", [1.0, -1.0])
@pytest.mark.slow
def test_the_length_is_held_against_a_reward_that_pays_for_it(scenario, per_token):
    """A reward above all for length, either way: without a bonus completions become full, or end at once. The two words
    are not worth the same, and that is still learned."""

    def reward(completion_ids, **kwargs):
        return [[per_token + 0.5 * (token == C) for token in ids] for ids in completion_ids]

    lengths = {}
    for hold in (False, True):
        trainer = scenario.train(
            policy=tiny.bigram_lm(dict.fromkeys((A, C, D), {C: 0.4, D: 0.4, EOS: 0.2})),
            reward=reward,
            stop_token="eos",
            response_length=8,
            hold_length=hold,
            learning_rate=0.005,
            optim="adamw_torch",
            per_device_train_batch_size=64,
            dataset=prompts(*[[A]] * 64),
            total_episodes=64 * 32,
        )
        lengths[hold] = logged(trainer, "completions/mean_length")
    start = lengths[True][0]
    assert lengths[False][0] == start
    assert lengths[False][-1] > 1.6 * start if per_token > 0 else lengths[False][-1] < 0.6 * start
    assert 1 / 1.4 < sum(lengths[True][-20:]) / 20 / start < 1.4
    assert next_token_probabilities(trainer.policy_model, C)[C] > 0.5
    bonuses = logged(trainer, "objective/length_bonus")
    assert sum(bonuses[-10:]) / 10 == pytest.approx(-per_token - 0.4, abs=0.5)


@pytest.mark.parametrize("target", [None, 3.0])
def test_the_length_to_hold_is_that_of_the_first_update_or_the_one_asked_for(scenario, target):
    settings = {"stop_token": "eos", "policy": tiny.bigram_lm()}
    plain = scenario.make(hold_length=False, **settings).collect_rollout(0)
    trainer = scenario.make(hold_length=True, target_length=target, **settings)
    rollout = trainer.collect_rollout(0)
    mask = rollout.completion_mask
    length = float(mask.sum(1).float().mean())
    # The returns, which the value model learns, are those of the rewards alone.
    torch.testing.assert_close(rollout.returns, plain.returns)
    torch.testing.assert_close(rollout.token_level_rewards, plain.token_level_rewards)
    raw = rollout.returns - rollout.values * mask
    held, bonus = hold_mean_length(raw, mask, target or length)
    assert bonus != 0
    assert trainer.rollout_metrics.pop()["objective/length_bonus"] == pytest.approx(bonus, rel=1e-4)
    torch.testing.assert_close(rollout.advantages, masked_whiten(held, mask), atol=1e-4, rtol=1e-4)
    assert trainer.adaptive.target_length == target
    assert trainer.adaptive.after(rollout, trainer.args).target_length == (target or length)


def test_centring_is_over_the_whole_batch(scenario):
    # A -> C C (2 tokens at 1), B -> D D (2 tokens at -3): the batch's mean is -1, though each row's own is not.
    trainer = scenario.make(
        policy=tiny.bigram_lm({A: {C: 1.0}, C: {C: 1.0}, B: {D: 1.0}, D: {D: 1.0}}),
        reward=token_reward_model({C: 1.0, D: -3.0}),
        dataset=prompts([A], [B]),
        per_device_train_batch_size=2,
        response_length=2,
        center_rewards=True,
    )
    rollout = trainer.collect_rollout(0)
    assert of_prompt(rollout, A).token_level_scores.tolist() == pytest.approx([2, 2])
    assert of_prompt(rollout, B).token_level_scores.tolist() == pytest.approx([-2, -2])


def test_a_dense_function_says_what_each_token_is_worth(scenario):
    def reward(completion_ids, **kwargs):
        return [[1.0, 2.0, -4.0, 0.5] for _ in completion_ids]

    assert scores_of(scenario, reward) == [1, 2, -4, 0.5]
    assert scores_of(scenario, reward, reward_density="sentence") == [0, 3, 0, -3.5]


def test_a_function_sees_prompts_completions_and_columns(scenario):
    calls = []

    def reward(**kwargs):
        calls.append(kwargs)
        return [1.5] * len(kwargs["completions"])

    dataset = Dataset.from_dict({"prompt": ["a"], "answer": [42]})
    assert scores_of(scenario, reward, dataset=dataset) == [0, 0, 0, 1.5]
    assert calls[0] == {
        "prompts": ["a"] * 4,
        "completions": ["c . d"] * 4,
        "completion_ids": [[C, PERIOD, D, EOS]] * 4,
        "answer": [42] * 4,
    }


def test_a_function_sees_messages_where_the_prompts_are_messages(scenario):
    calls = []

    def reward(**kwargs):
        calls.append(kwargs)
        return [1.5] * len(kwargs["completions"])

    tokenizer = tiny.word_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    dataset = Dataset.from_dict({"prompt": [[{"role": "user", "content": "a"}]]})
    scores_of(scenario, reward, dataset=dataset, tokenizer=tokenizer)
    assert calls[0]["prompts"][0] == [{"role": "user", "content": "a"}]
    assert calls[0]["completions"][0] == [{"role": "assistant", "content": "c . d"}]


def test_the_alarm_for_rewards_that_grow_with_length(scenario):
    settings = {
        "policy": tiny.bigram_lm({token: {C: 0.6, EOS: 0.4} for token in range(16)}),
        "stop_token": "eos",
        "response_length": 8,
        "per_device_train_batch_size": 8,
    }
    name = "objective/score_length_correlation"

    def per_token(completion_ids, **kwargs):
        return [[1.0] * len(ids) for ids in completion_ids]

    def shorter_is_better(completion_ids, **kwargs):
        return [-2.0 * len(ids) for ids in completion_ids]

    assert logged(scenario.train(reward=per_token, **settings), name)[0] == pytest.approx(1, abs=1e-5)
    assert logged(scenario.train(reward=shorter_is_better, **settings), name)[0] == pytest.approx(-1, abs=1e-5)


# --- optimizer steps -----------------------------------------------------------------------------------------------


def test_micro_batches_do_not_change_the_step(scenario):
    # Responses of unequal lengths: a mean of means over micro-batches would weigh their tokens unequally.
    dataset = prompts([A, B], [B], [C], [D, D, D])
    learned = []
    for size, accumulation in ((4, 1), (2, 2), (1, 4)):
        policy, value = attentive_policy(), tiny.unigram_classifier()
        trainer = scenario.train(
            policy=policy,
            value=value,
            dataset=dataset,
            stop_token="eos",
            response_length=12,
            num_ppo_epochs=2,
            num_mini_batches=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        numbers = [logged(trainer, name)[-1] for name in ("loss/policy_avg", "policy/approxkl_avg", "val/ratio")]
        learned.append(torch.cat([weights(policy), weights(value), torch.tensor(numbers)]))
    torch.testing.assert_close(learned[0], learned[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(learned[0], learned[2], rtol=0, atol=1e-6)


def test_groups_hold_every_completion_token_once(scenario, monkeypatch):
    monkeypatch.setitem(packing._TOKENS_PER_PASS, "cpu", 12)
    trainer = make_uneven(scenario)
    rollout = trainer.collect_rollout(0)
    mask = rollout.completion_mask.bool()
    numbered = torch.arange(mask.numel(), dtype=torch.float).reshape(mask.shape)
    groups = packed_groups(
        rollout._replace(advantages=numbered, returns=-numbered), torch.arange(4), trainer.accelerator, 4
    )
    assert len(groups) > 1
    tokens = {float(n): int(token) for n, token in zip(numbered[mask], rollout.completion_ids[mask], strict=True)}
    seen = {}
    for group in groups:
        targets = group["input_ids"].flatten()[group["columns"] + 1].tolist()
        seen |= dict(zip(group["advantages"].tolist(), targets, strict=True))
        assert torch.equal(group["returns"], -group["advantages"])
        assert group["num_tokens"] == mask.sum()
    assert seen == tokens and sum(len(g["columns"]) for g in groups) == len(tokens)


def test_groups_change_nothing_but_rounding(scenario, monkeypatch):
    learned = []
    for budget in (10**6, 12):
        monkeypatch.setitem(packing._TOKENS_PER_PASS, "cpu", budget)
        policy, value = attentive_policy(), tiny.unigram_classifier()
        trainer = scenario.train(
            policy=policy,
            value=value,
            dataset=prompts([A, B], [B], [C], [D, D, D]),
            stop_token="eos",
            response_length=12,
            num_ppo_epochs=2,
        )
        numbers = [logged(trainer, name)[-1] for name in ("loss", "grad_norm", "policy/approxkl_avg", "val/ratio")]
        learned.append(torch.cat([weights(policy), weights(value), torch.tensor(numbers)]))
    torch.testing.assert_close(learned[0], learned[1], rtol=0, atol=1e-6)


def test_a_mini_batch_may_be_smaller_than_a_micro_batch(scenario, optimizer_steps):
    policy = tiny.bigram_lm()
    rows = training_forwards(policy.base_model, lambda inputs, _: len(inputs["input_ids"]))
    scenario.train(policy=policy, per_device_train_batch_size=4, num_mini_batches=4)
    assert rows == [1, 1, 1, 1] and len(optimizer_steps) == 4


def test_every_epoch_trains_on_every_row_in_another_order(scenario):
    policy = tiny.bigram_lm()
    rows = training_forwards(policy.base_model, lambda inputs, _: inputs["input_ids"][0, 0].item())
    scenario.train(
        policy=policy,
        dataset=prompts(*[[token] for token in range(3, 11)]),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        num_ppo_epochs=2,
        num_mini_batches=8,
    )
    assert sorted(rows[:8]) == sorted(rows[8:]) == list(range(3, 11))
    assert rows[:8] != rows[8:]


@pytest.mark.parametrize(
    ("size", "settings", "updates"),
    [
        (3, {"num_train_epochs": 1}, 1),  # smaller than a batch of 4
        (6, {"num_train_epochs": 1}, 2),  # a ragged end
        (6, {"num_train_epochs": 2}, 3),
        (6, {"total_episodes": 9}, 3),
        (6, {"max_steps": 4}, 2),
    ],
)
def test_length_of_a_run(scenario, optimizer_steps, size, settings, updates):
    seen = []

    def reward(prompts, **kwargs):
        seen.extend(prompts)
        return [0.0] * len(prompts)

    words = list("abcdef")[:size]
    trainer = scenario.train(reward=reward, dataset=Dataset.from_dict({"prompt": words}), num_ppo_epochs=2, **settings)
    assert len(optimizer_steps) == 2 * updates
    assert len(seen) == 4 * updates
    assert set(seen[:size]) == set(words)
    assert trainer.state.epoch == pytest.approx(4 * updates / size)
    assert logged(trainer, "episode")[-1] == 4 * updates


def test_data_seed_decides_on_the_order_of_prompts_alone(scenario):
    rollouts = []
    for settings in (
        {"seed": 1},
        {"seed": 1, "data_seed": 1},
        {"seed": 1, "data_seed": 2},
        {"seed": 2, "data_seed": 1},
    ):
        trainer = scenario.make(dataset=prompts(*[[token] for token in range(3, 15)]), **settings)
        rollouts.append(trainer.collect_rollout(0))
    assert torch.equal(rollouts[0].prompt_ids, rollouts[1].prompt_ids)
    assert not torch.equal(rollouts[0].prompt_ids, rollouts[2].prompt_ids)
    assert torch.equal(rollouts[0].prompt_ids, rollouts[3].prompt_ids)
    # The policy is indifferent, so the numbers drawn decide on the completions.
    assert torch.equal(rollouts[0].completion_ids, rollouts[2].completion_ids)
    assert not torch.equal(rollouts[0].completion_ids, rollouts[3].completion_ids)


def test_gradient_checkpointing_changes_no_number(scenario):
    learned = []
    for checkpointing in (False, True):
        policy = attentive_policy()
        scenario.train(policy=policy, gradient_checkpointing=checkpointing, num_ppo_epochs=2)
        learned.append(weights(policy))
    assert torch.equal(*learned)


def test_weights_in_bfloat16(scenario):
    models = [
        model.to(torch.bfloat16)
        for model in (tiny.bigram_lm(), tiny.unigram_classifier(), token_reward_model({A: 1.0}))
    ]
    policy, value, reward = models
    before = weights(policy)
    trainer = scenario.train(policy=policy, value=value, reward=reward, bf16=True, kl_coef=0.05, learning_rate=1.0)
    assert {model.dtype for model in models} == {torch.bfloat16}
    assert torch.isfinite(weights(policy)).all() and not torch.equal(weights(policy), before)
    assert logged(trainer, "val/ratio")[0] == pytest.approx(1, abs=0.05)


# --- configuration -------------------------------------------------------------------------------------------------

CONFIGS = [
    FineGrainedPPOConfig,
    pytest.param(PPOConfig, marks=pytest.mark.skipif(not TRL_HAS_PPO, reason="this version of TRL has no PPOConfig")),
]


def plain_arguments(config_class, directory, **kwargs):
    return config_class(
        output_dir=str(directory), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, save_strategy="no",
        response_length=4, per_device_train_batch_size=2, gradient_accumulation_steps=2, num_mini_batches=2,
        num_sample_generations=0, total_episodes=4, **kwargs,
    )  # fmt: skip


@pytest.mark.parametrize("config_class", CONFIGS)
def test_arguments_are_not_written_to(scenario, tmp_path, config_class):
    args = plain_arguments(config_class, tmp_path)
    before = copy.deepcopy(vars(args))
    trainer = FineGrainedPPOTrainer(
        args=args,
        processing_class=tiny.word_tokenizer(),
        model=tiny.bigram_lm(),
        reward_model=tiny.unigram_classifier({C: 1.0}),
        train_dataset=prompts([A], [B]),
    )
    trainer.train()
    assert trainer.state.global_step == 8
    assert str(vars(args)) == str(before)  # as text, since accelerate's plugins have no equality


@pytest.mark.skipif(not TRL_HAS_PPO, reason="this version of TRL has no PPOTrainer")
def test_arguments_that_trls_trainer_has_filled_in(scenario):
    trainer = scenario.train(PPOTrainer)
    assert trainer.args.batch_size == 4
    ours = FineGrainedPPOTrainer(
        args=trainer.args,
        processing_class=tiny.word_tokenizer(),
        model=tiny.bigram_lm(),
        reward_model=tiny.unigram_classifier(),
        train_dataset=prompts([A]),
    )
    ours.train()
    assert ours.state.global_step == 1


def test_trainer_is_trls_where_trl_has_one(scenario):
    assert isinstance(scenario.make(), PPOTrainer)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"num_mini_batches": 3}, "= 4 must be a multiple of `num_mini_batches` = 3"),
        ({"max_steps": 3, "num_ppo_epochs": 2}, "`max_steps=3` ends within an update"),
        ({"response_length": 200}, "A prompt of 1 tokens and `response_length=200` do not fit in the 128 positions of `model`"),
        ({"dataset": prompts([A]).to_iterable_dataset(), "num_train_epochs": 1}, "A stream has no length"),
        ({"dataset": Dataset.from_dict({"text": ["a"]})}, "'prompt' or 'input_ids'"),
        ({"dataset": prompts([])}, "Prompt 0 of this batch has no token"),
        ({"arguments": {"train_dataset": prompts([A]).select([])}}, "The train data set is empty"),
        ({"dataset": prompts([A]).to_iterable_dataset().filter(lambda row: False)}, "The stream of training prompts is empty"),
        ({"eval_dataset": {"one": prompts([A]).select([])}}, "The one data set is empty"),
        ({"arguments": {"train_dataset": None}}, "`train_dataset` is required"),
        ({"arguments": {"reward_model": None}}, "`reward_model` is required"),
        ({"arguments": {"value_model": tiny.causal_lm()}}, "`value_model` is a LlamaForCausalLM"),
        ({"arguments": {"reward_model": tiny.causal_lm()}}, "`reward_model` is a LlamaForCausalLM"),
        ({"arguments": {"reward_model": "a name"}}, "must be a model or a function, got str"),
        ({"reward": tiny.unigram_classifier(), "reward_signal": "token_scores"}, "LlamaForSequenceClassification does not give"),
        ({"arguments": {"data_collator": lambda rows: {"input_ids": torch.zeros(4, 1)}}}, "`data_collator` must return"),
        ({"arguments": {"data_collator": lambda rows: {"input_ids": torch.ones(4, 2).long(), "attention_mask": torch.tensor([[1, 0]] * 4)}}}, "padded on the left"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(scenario, settings, error):
    with pytest.raises((TypeError, ValueError), match=re.escape(error)):
        scenario.train(**settings)


def test_models_must_be_different_objects(scenario):
    policy, reward = tiny.bigram_lm(), tiny.unigram_classifier()
    with pytest.raises(ValueError, match="`model` and `ref_model` are one object"):
        scenario.make(policy=policy, ref_model=policy)
    with pytest.raises(ValueError, match="`value_model` and `reward_model` are one object"):
        scenario.make(reward=reward, value=reward)


def test_stop_token_eos_needs_an_eos_token(scenario):
    tokenizer = tiny.word_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="the tokenizer has no EOS token"):
        scenario.make(tokenizer=tokenizer, stop_token="eos")


# --- what Trainer offers -------------------------------------------------------------------------------------------


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


def test_own_optimizer_and_schedule(scenario):
    policy, value = tiny.bigram_lm(), tiny.unigram_classifier()
    optimizer = torch.optim.SGD([*policy.parameters(), *value.parameters()], lr=0.25)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    trainer = scenario.train(
        policy=policy, value=value, num_ppo_epochs=3, arguments={"optimizers": (optimizer, schedule)}
    )
    assert logged(trainer, "lr") == [0.25, 0.125, 0.0625]


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


# --- evaluation ----------------------------------------------------------------------------------------------------


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
    reward = token_reward_model({C: 0.5, EOS: 2.0, D: -1.0})
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


# --- does it learn? ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("density", "learned"), [("token", True), ("sequence", False)])
@pytest.mark.slow
def test_dense_rewards_teach_what_the_same_total_at_the_end_does_not(scenario, density, learned):
    # Worth a point: each C among 16 tokens, of which it is one in 16 at first. Twelve updates of 16 responses. Over
    # seeds 0 to 3 its share in the last batch came to between .77 and .95 for dense rewards, between .36 and .48 for
    # terminal ones.
    trainer = scenario.train(
        policy=tiny.causal_lm(vocab_size=16),
        reward=lambda completion_ids, **kwargs: [[float(token == C) for token in ids] for ids in completion_ids],
        reward_density=density,
        per_device_train_batch_size=16,
        total_episodes=12 * 16,
        num_ppo_epochs=4,
        logging_steps=4,
        response_length=16,
        optim="adamw_torch",
        learning_rate=1e-2,
        max_grad_norm=1.0,
        arguments={"value_model": None},
    )
    share = [score / 16 for score in logged(trainer, "objective/scores")]
    assert share[0] < 0.1
    assert (share[-1] > 0.65) == learned


def test_every_model_that_reads_the_policys_tokens_must_have_room_for_them(scenario):
    short = tiny.sequence_classifier(max_position_embeddings=4)
    for argument, name in (("reward", "reward_model"), ("value", "value_model")):
        trainer = scenario.make(**{argument: short})
        with pytest.raises(ValueError, match=f"4 positions of `{name}`"):
            trainer.collect_rollout(0)


def test_under_mixed_precision_the_first_ratio_is_one(scenario):
    trainer = scenario.train(policy=tiny.causal_lm(vocab_size=16, initializer_range=0.5), bf16=True)
    assert logged(trainer, "val/ratio")[0] == pytest.approx(1, abs=1e-6)
    assert logged(trainer, "policy/approxkl_avg")[0] == pytest.approx(0, abs=1e-9)


def test_samples_of_several_evaluation_sets_are_all_shown(scenario):
    trainer = scenario.make(eval_dataset={"one": prompts([A], [A]), "two": prompts([B])})
    assert trainer.generate_completions()["query"].tolist() == ["a", "a", "b"]
    with pytest.raises(ValueError, match="no evaluation data set 'three'"):
        trainer.evaluate("three")


def test_a_policy_from_supervised_training_gets_a_reference_that_stays(scenario, tmp_path):
    """TRL's SFTTrainer replaces the model's `forward`, and a plain deep copy of it runs the first model's weights."""
    policy = tiny.causal_lm(vocab_size=16, initializer_range=0.5)
    data = Dataset.from_dict({"input_ids": [[A, B, A]] * 4})
    config = SFTConfig(tmp_path / "sft", use_cpu=True, bf16=False, max_steps=1, report_to="none", save_strategy="no")
    SFTTrainer(policy, config, train_dataset=data, processing_class=tiny.word_tokenizer()).train()
    assert "forward" in vars(policy)
    trainer = scenario.train(policy=policy, total_episodes=12, learning_rate=5.0)
    assert logged(trainer, "objective/kl")[0] == pytest.approx(0, abs=1e-6)
    assert abs(logged(trainer, "objective/kl")[2]) > 1e-3
    with pytest.raises(ValueError, match="`model` is a deep copy of a LlamaForCausalLM"):
        scenario.make(policy=copy.deepcopy(policy))
