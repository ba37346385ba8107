"""FineGrainedPPOTrainer beside TRL's PPOTrainer, and by itself.

Where TRL's trainer has a defect, the same scenario runs on both trainers and each must show its own outcome: so the
test is known to tell them apart. TRL's half is skipped on versions of TRL that have no PPOTrainer.
"""

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import tiny
from ppo_scenario import attentive_policy, logged, make_uneven, prompts, training_forwards, weights
from tiny import A, B, C, D
from trl_tokenreward import FineGrainedPPOConfig, FineGrainedPPOTrainer
from trl_tokenreward._trl import TRL_HAS_PPO, PPOConfig, PPOTrainer
from trl_tokenreward.nn import unpadding as packing
from trl_tokenreward.ppo.batches import packed_groups
from trl_tokenreward.ppo.forward import PolicyAndValue
from trl_tokenreward.ppo.schedule import share_of


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


def test_the_policys_graph_is_gone_before_the_values_are_made(scenario, monkeypatch):
    learned = []
    for together in (True, False):
        if together:
            monkeypatch.setattr(PolicyAndValue, "parts", lambda *_: ("both",))
        else:
            monkeypatch.undo()
        policy, value, events = attentive_policy(), tiny.unigram_classifier(), []
        next(policy.parameters()).register_post_accumulate_grad_hook(lambda _, events=events: events.append("gradient"))

        def values(*_, events=events):
            if torch.is_grad_enabled():
                events.append("values")

        value.model.register_forward_pre_hook(values)
        trainer = scenario.train(policy=policy, value=value, stop_token="eos", response_length=12, num_ppo_epochs=2)
        assert events and events == (["values", "gradient"] if together else ["gradient", "values"]) * (
            len(events) // 2
        )
        numbers = trainer.state.log_history[-2]
        assert numbers.keys() >= {"loss", "loss/policy_avg", "loss/value_avg"}
        learned.append((torch.cat([weights(policy), weights(value)]), numbers))
    assert torch.equal(learned[0][0], learned[1][0])
    for name in ("loss", "grad_norm", "loss/policy_avg", "loss/value_avg", "val/ratio", "val/clipfrac_avg"):
        assert learned[0][1][name] == pytest.approx(learned[1][1][name], rel=1e-6), name


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


def test_weights_in_bfloat16(scenario, caplog):
    models = [
        model.to(torch.bfloat16)
        for model in (tiny.bigram_lm(), tiny.unigram_classifier(), tiny.unigram_reward_model({A: 1.0}))
    ]
    policy, value, reward = models
    before = weights(policy)
    trainer = scenario.train(policy=policy, value=value, reward=reward, bf16=True, kl_coef=0.05, learning_rate=1.0)
    assert {model.dtype for model in models} == {torch.bfloat16}
    assert torch.isfinite(weights(policy)).all() and not torch.equal(weights(policy), before)
    assert logged(trainer, "val/ratio")[0] == pytest.approx(1, abs=0.05)
    for argument in ("model", "value_model"):
        assert caplog.text.count(f"Weights of `{argument}` are trained in bfloat16") == 1


@pytest.mark.parametrize("of_policy", [False, True])
def test_a_value_model_that_the_trainer_makes_is_trained_in_float32(of_policy, scenario, caplog):
    reward = tiny.unigram_classifier().to(torch.bfloat16)
    policy = tiny.bigram_lm().to(torch.bfloat16 if of_policy else torch.float32)
    arguments = {"value_model": None, "reward_model": (lambda completions, **_: [0.0] * len(completions))}
    trainer = scenario.train(policy=policy, arguments=arguments if of_policy else {**arguments, "reward_model": reward})
    assert {parameter.dtype for parameter in trainer.value_model.parameters()} == {torch.float32}
    assert ("Weights of `model`" in caplog.text) == of_policy and "`value_model` are trained in" not in caplog.text
    assert policy.dtype == (torch.bfloat16 if of_policy else torch.float32) and reward.dtype == torch.bfloat16


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
        ({"response_length": 200}, "row 0 of the train data set of 1 tokens and `response_length=200` do not fit in the 128 positions of `model`"),
        ({"dataset": prompts([A]).to_iterable_dataset(), "num_train_epochs": 1}, "A stream has no length"),
        ({"dataset": Dataset.from_dict({"text": ["a"]})}, "'prompt' or 'input_ids'"),
        ({"dataset": prompts([])}, "Row 0 of the train data set, column `input_ids`: has no tokens"),
        ({"arguments": {"train_dataset": prompts([A]).select([])}}, "The train data set is empty"),
        ({"dataset": prompts([A]).to_iterable_dataset().filter(lambda row: False)}, "The stream of training prompts is empty"),
        ({"eval_dataset": {"one": prompts([A]).select([])}}, "The eval_one data set is empty"),
        ({"arguments": {"train_dataset": None}}, "`train_dataset` is required"),
        ({"arguments": {"reward_model": None}}, "`reward_model` is required"),
        ({"arguments": {"value_model": tiny.causal_lm()}}, "`value_model` is a LlamaForCausalLM"),
        ({"arguments": {"reward_model": tiny.causal_lm()}}, "`reward_model` is a LlamaForCausalLM"),
        ({"arguments": {"reward_model": "a name"}}, "must be a model or a function, got str. A model is loaded by its name with `from_pretrained`"),
        ({"arguments": {"reward_model": [tiny.unigram_classifier(), "a name"]}}, "`reward_model[1]`: `reward_model` must be a model or a function, got str"),
        ({"arguments": {"model": "a name"}}, "`model` must be a model, but is 'a name': load it with `AutoModelForCausalLM.from_pretrained`."),
        ({"arguments": {"ref_model": "a name"}}, "`ref_model` must be a model, but is 'a name': load it with `AutoModelForCausalLM.from_pretrained`."),
        ({"arguments": {"value_model": "a name"}}, "`value_model` must be a model, but is 'a name': load it with `TokenRewardModel.from_pretrained`."),
        ({"arguments": {"processing_class": "a name"}}, "`processing_class` must be a tokenizer, but is 'a name': load it with `AutoTokenizer.from_pretrained`."),
        ({"arguments": {"reward_processing_class": "a name"}}, "`reward_processing_class` must be a tokenizer, but is 'a name'"),
        ({"arguments": {"train_dataset": [{"prompt": "a"}]}}, "The train data set must be a `Dataset` or an `IterableDataset`, but is a list: `Dataset.from_list` makes one"),
        ({"arguments": {"train_dataset": {"train": prompts([A])}}}, "The train data set must be a `Dataset` or an `IterableDataset`, but is a dict: pass one of its splits."),
        ({"arguments": {"eval_dataset": {"one": [{"prompt": "a"}]}}}, "The eval_one data set must be a `Dataset`"),
        ({"reward": tiny.unigram_classifier(), "reward_signal": "token_scores"}, "needs token scores; LlamaForSequenceClassification has none"),
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


def test_the_model_under_the_policys_adapter_is_no_reference(scenario):
    """PEFT puts the adapter into the model, and the reference would have it, too."""
    peft = pytest.importorskip("peft")
    base = tiny.bigram_lm()
    policy = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="`model` and `ref_model` are one model under an adapter"):
        scenario.make(policy=policy, ref_model=base)


def test_stop_token_eos_needs_an_eos_token(scenario):
    tokenizer = tiny.word_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="the tokenizer has no EOS token"):
        scenario.make(tokenizer=tokenizer, stop_token="eos")
    with pytest.raises(
        ValueError, match="`missing_eos_penalty` without a stop token is for EOS, but the tokenizer has"
    ):
        scenario.make(tokenizer=tokenizer, missing_eos_penalty=1.0)


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


def test_several_gpus_in_one_process(scenario, monkeypatch):
    monkeypatch.setattr(FineGrainedPPOConfig, "n_gpu", 2)
    with pytest.raises(ValueError, match="2 GPUs are visible .* `accelerate launch`"):
        scenario.make()


def test_apples_gpu(scenario, monkeypatch):
    monkeypatch.setattr(FineGrainedPPOConfig, "device", torch.device("mps"))
    with pytest.raises(ValueError, match=r"Apple's GPU \(mps\) does not have: train with `use_cpu=True`"):
        scenario.make()


def test_every_model_that_reads_the_policys_tokens_must_have_room_for_them(scenario):
    short = tiny.sequence_classifier(max_position_embeddings=4)
    for argument, name in (("reward", "reward_model"), ("value", "value_model")):
        with pytest.raises(ValueError, match=f"4 positions of `{name}`: set `max_prompt_length="):
            scenario.make(**{argument: short})


@pytest.mark.parametrize(
    ("dtype", "bf16"), [(torch.float32, True), (torch.bfloat16, True), (torch.bfloat16, False), (torch.float16, False)]
)
def test_at_low_precision_the_first_ratio_is_one(dtype, bf16, scenario):
    policy = tiny.causal_lm(vocab_size=16, initializer_range=0.5).to(dtype)
    trainer = scenario.train(policy=policy, bf16=bf16, response_length=20)
    assert logged(trainer, "val/ratio")[0] == pytest.approx(1, abs=1e-6)
    assert logged(trainer, "policy/approxkl_avg")[0] == pytest.approx(0, abs=1e-9)
    assert logged(trainer, "objective/kl")[0] == 0


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


@pytest.mark.parametrize("kind", ["reward", "value", "ref_model"])
def test_models_with_a_smaller_vocabulary_than_the_policy_are_refused_before_the_run(kind, scenario):
    make = tiny.causal_lm if kind == "ref_model" else tiny.sequence_classifier
    smaller, policy = make(vocab_size=18), tiny.causal_lm(vocab_size=20)
    argument = kind if kind == "ref_model" else f"{kind}_model"
    models = {"reward": tiny.sequence_classifier(vocab_size=20), "value": tiny.sequence_classifier(vocab_size=20)}
    with pytest.raises(ValueError, match=rf"`{argument}`, with 18 .*`{argument}.resize_token_embeddings\(20\)`"):
        scenario.make(policy=policy, **{**models, kind: smaller})
    # What the error says helps, and a larger vocabulary does no harm.
    smaller.resize_token_embeddings(20)
    scenario.make(policy=policy, **{**models, kind: smaller}).collect_rollout(0)
    scenario.make(policy=policy, **{**models, kind: make(vocab_size=24)}).collect_rollout(0)


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_that_the_policy_has_no_embedding_for_are_named(stream, scenario):
    tokenizer = tiny.word_tokenizer()
    tokenizer.add_tokens(["new"])
    dataset = prompts([A], [A, 16], [B], [C])
    with pytest.raises(ValueError, match="Row 1 of the prepared train data set has the token id 16"):
        trainer = scenario.make(tokenizer=tokenizer, dataset=dataset.to_iterable_dataset() if stream else dataset)
        trainer.collect_rollout(0)
    trainer = scenario.make(tokenizer=tokenizer, eval_dataset=prompts([A]))
    with pytest.raises(ValueError, match="Row 0 of the prepared eval data set has the token id 16"):
        trainer.evaluate(prompts([16]))


def test_a_tokenizer_that_is_not_the_models(scenario, caplog):
    words = "The tokenizer has 16 tokens and {} {} embeddings, so they do not belong together"
    sizes = {"value": tiny.sequence_classifier(vocab_size=42), "reward": tiny.sequence_classifier(vocab_size=42)}
    scenario.make(policy=tiny.causal_lm(vocab_size=41), **sizes)
    assert (
        caplog.text.count(words.format("`model`", 41)) == caplog.text.count(words.format("the reward model", 42)) == 1
    )


def test_a_tokenizer_without_a_token_to_pad_with(scenario):
    tokenizer = tiny.word_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = None
    with pytest.raises(ValueError, match="neither a pad token nor an EOS token to pad with: set `processing_class.pad"):
        scenario.make(tokenizer=tokenizer)


def test_a_function_must_take_what_it_is_called_with(scenario):
    def reward(prompts, completions, completion_ids):
        return [1.0] * len(prompts)

    rows = Dataset.from_dict({"prompt": ["a"] * 4})
    scenario.train(reward=reward, dataset=rows)
    message = r"'reward' is called with .*, city, but does not take `city`: end its arguments with `\*\*columns`"
    with pytest.raises(TypeError, match=message):
        scenario.make(reward=reward, dataset=rows.add_column("city", ["Rome"] * 4))


def test_a_pad_token_needs_no_embedding(scenario):
    tokenizer = tiny.word_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 16
    scenario.train(tokenizer=tokenizer, dataset=prompts([A], [A, B, C], [B], [C]), stop_token="eos")


@pytest.mark.parametrize("number", [0, 1, 2, 5, 8, 9])
def test_processes_share_the_rows_of_an_evaluation(number):
    shares = [share_of(number, SimpleNamespace(num_processes=4, process_index=index)) for index in range(4)]
    assert [row for share in shares for row in share] == list(range(number))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
