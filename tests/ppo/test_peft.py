"""Adapters on the policy, the value model and the reward model."""

import copy

import pytest
import torch
from torch import nn

import ppo_runs
import tiny
from trl_tokenreward import TokenRewardModel
from trl_tokenreward.ppo.forward import completion_logps, completion_values
from trl_tokenreward.reward_model.readout import prefix_scores, token_scores


peft = pytest.importorskip("peft")


def policy(family="llama"):
    return ppo_runs.scaled(tiny.causal_lm(family, vocab_size=ppo_runs.VOCAB_SIZE))


def classifier(seed=1):
    return ppo_runs.scaled(tiny.sequence_classifier(seed=seed, vocab_size=ppo_runs.VOCAB_SIZE))


def adapted(model, heads=(), **kwargs):
    """A model with an adapter and heads of the adapter that make a difference, as training leaves them."""
    model = ppo_runs.lora(model, modules_to_save=list(heads) or None, **kwargs)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return model


def make(directory, **models):
    """A trainer of two updates, without the saves and evaluations that are tested elsewhere."""
    settings = {"max_steps": 8, "save_strategy": "no", "eval_strategy": "no", "logging_steps": 4}
    settings.update({name: models.pop(name) for name in list(models) if not isinstance(models[name], MODELS)})
    models = {"model": policy(), "reward_model": ppo_runs.token_reward_model(), **models}
    return ppo_runs.make("terminal", directory, models=lambda family: models, **settings)


MODELS = (nn.Module, peft.PeftConfig)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before, model):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def batch(rollout):
    input_ids = torch.cat([rollout.prompt_ids, rollout.completion_ids], 1)
    return input_ids, torch.cat([rollout.prompt_mask, rollout.completion_mask], 1)


def assert_rollout(rollout, name, expected):
    mask = rollout.completion_mask
    torch.testing.assert_close(getattr(rollout, name) * mask, expected * mask, rtol=0, atol=1e-5)


def logps(model, rollout):
    with torch.no_grad():
        return completion_logps(model.eval(), *batch(rollout), rollout.completion_ids.shape[1], 1.0)


@pytest.mark.parametrize("gradient_checkpointing", [False, True], ids=["", "checkpointing"])
def test_peft_config_trains_an_adapter_against_the_base_model(gradient_checkpointing, tmp_path):
    base = policy()
    before = weights(base)
    trainer = make(
        tmp_path,
        model=policy(),
        peft_config=ppo_runs.lora_config(),
        gradient_checkpointing=gradient_checkpointing,
    )
    assert trainer.ref_model is None
    trained = trainer.model.policy
    start = weights(trained)
    trainer.train()
    assert changed(start, trained) == {name for name in start if "lora_" in name}
    first, second = trainer.rollouts.values()
    assert first.kl.abs().max() < 1e-5  # a new adapter changes nothing
    assert second.kl.abs().max() > 1e-2
    for rollout in (first, second):
        assert_rollout(rollout, "ref_per_token_logps", logps(base, rollout))
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    lora_parameters = {id(p) for name, p in trained.named_parameters() if "lora_" in name}
    assert optimized == lora_parameters | {id(p) for p in trainer.model.value_model.parameters() if p.requires_grad}

    trainer.save_model(tmp_path / "saved")
    assert (tmp_path / "saved" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "saved")
    torch.testing.assert_close(logps(loaded, second), logps(trained, second), rtol=0, atol=1e-6)
    loaded = loaded.merge_and_unload()
    assert any((loaded.state_dict()[name] - tensor).abs().max() > 1e-3 for name, tensor in before.items())


def test_gradient_checkpointing_changes_nothing(tmp_path):
    def train(gradient_checkpointing):
        trainer = make(
            tmp_path,
            model=policy(),
            peft_config=ppo_runs.lora_config(),
            value_model=ppo_runs.lora(ppo_runs.token_reward_model(), modules_to_save=["score"]),
            gradient_checkpointing=gradient_checkpointing,
        )
        forwards = []
        for model in (trainer.model.policy, trainer.model.value_model):
            attention = model.get_base_model().model.layers[0].self_attn
            attention.register_forward_pre_hook(lambda *_: forwards.append(torch.is_grad_enabled()))
        trainer.train()
        return weights(trainer.model), sum(forwards)

    (plain, passes), (checkpointed, checkpointed_passes) = train(False), train(True)
    assert checkpointed_passes == 2 * passes > 0  # once more in the backward pass
    for name, tensor in plain.items():
        torch.testing.assert_close(checkpointed[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("heads", [[], ["lm_head"]], ids=["", "head"])
@pytest.mark.parametrize("name", ["default", "sft"])
def test_the_reference_of_a_trained_adapter_is_a_copy_of_it(name, heads, tmp_path):
    model = adapted(policy(), heads, adapter_name=name)
    start, initial = weights(model), copy.deepcopy(model)
    trainer = make(tmp_path, model=model)
    assert trainer.ref_model is None and set(model.peft_config) == {name, "ref"}
    trainable = {parameter for parameter, p in model.named_parameters() if p.requires_grad}
    assert trainable == {parameter for parameter, p in initial.named_parameters() if p.requires_grad}
    trainer.train()
    first, second = trainer.rollouts.values()
    assert first.kl.abs().max() < 1e-5 and second.kl.abs().max() > 1e-2
    for rollout in (first, second):
        assert_rollout(rollout, "ref_per_token_logps", logps(initial, rollout))
    now = weights(model)
    assert {key for key in start if not torch.equal(start[key], now[key])} == trainable
    # The value model is made of the policy with this adapter; the reference has no part in it.
    assert not any(".ref" in key for key in trainer.model.value_model.state_dict())


def test_a_trained_adapter_is_saved_and_loaded_without_its_reference(tmp_path):
    model = adapted(policy())
    trainer = make(tmp_path, model=model)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    loaded = peft.PeftModel.from_pretrained(policy(), tmp_path / "saved")
    assert set(loaded.peft_config) == {"default"}
    rollout = trainer.rollouts[1]
    torch.testing.assert_close(logps(loaded, rollout), logps(model, rollout), rtol=0, atol=1e-6)


def test_a_resumed_run_keeps_the_reference_whatever_adapter_it_is_given(tmp_path):
    whole = make(tmp_path / "whole", model=adapted(policy()), max_steps=12, save_strategy="steps", save_steps=4)
    whole.train()
    # The script's own adapter, and the one that the checkpoint holds.
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    for number, start in enumerate([adapted(policy()), None]):
        if start is None:
            start = peft.PeftModel.from_pretrained(policy(), checkpoint, is_trainable=True)
        resumed = make(tmp_path / str(number), model=start, max_steps=12)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        for name in ("kl", "ref_per_token_logps"):
            assert_rollout(resumed.rollouts[2], name, getattr(whole.rollouts[2], name))


@pytest.mark.parametrize("init", ["pissa", False], ids=str)
def test_a_new_adapter_that_changes_the_model_is_copied_too(init, tmp_path):
    trainer = make(
        tmp_path, model=policy(), peft_config=peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=init)
    )
    assert set(trainer.model.policy.peft_config) == {"default", "ref"}
    trainer.train()
    assert trainer.rollouts[0].kl.abs().max() < 1e-5


def test_the_rank_that_an_adapter_begins_with_is_no_change_of_the_model(tmp_path):
    config = peft.AdaLoraConfig(target_modules=["q_proj", "down_proj"], init_r=4, total_step=8, tinit=1, tfinal=1)
    trainer = make(tmp_path, model=policy(), peft_config=config)
    assert set(trainer.model.policy.peft_config) == {"default"} and trainer.ref_model is None
    before = weights(trainer.model.policy)
    trainer.train()
    assert trainer.rollouts[0].kl.abs().max() < 1e-5
    assert any("lora_E" in name for name in changed(before, trainer.model.policy))


def test_an_adapter_that_cannot_be_copied_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`ref_adapter_name='ref'` if that is the reference"):
        make(tmp_path, model=with_adapters("ref", "default"))
    with pytest.raises(ValueError, match="cannot be copied as the reference .* Pass a `ref_model`"):
        make(tmp_path, model=adapted(policy(), bias="all"))
    model = with_adapters("first", "second")
    model.base_model.set_adapter(["first", "second"])
    with pytest.raises(ValueError, match="2 active adapters"):
        make(tmp_path, model=model)


def with_adapters(*names):
    model = adapted(policy(), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, ppo_runs.lora_config())
        state = peft.get_peft_model_state_dict(model, adapter_name=names[0])
        peft.set_peft_model_state_dict(model, {key: 1.1 * tensor for key, tensor in state.items()}, adapter_name=name)
    return model


@pytest.mark.parametrize("trained", ["default", "policy"])
def test_one_adapter_is_trained_and_another_is_the_reference(trained, tmp_path):
    names = {} if trained == "default" else {"model_adapter_name": "policy"}
    model = with_adapters("sft", trained)  # "sft" is the active one
    start, initial = weights(model), copy.deepcopy(model)
    trainer = make(tmp_path, model=model, ref_adapter_name="sft", **names)
    trainer.train()
    assert changed(start, model) == {name for name in start if f".{trained}." in name}
    first, second = trainer.rollouts.values()
    for adapter, field in (("sft", "ref_per_token_logps"), (trained, "per_token_logps")):
        initial.set_adapter(adapter)
        assert_rollout(first, field, logps(initial, first))
    initial.set_adapter("sft")
    assert_rollout(second, "ref_per_token_logps", logps(initial, second))
    assert first.kl.abs().max() > 1e-2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ref_adapter_name": "other"}, "no adapter 'other'; it has \\['default', 'sft'\\]"),
        ({"ref_adapter_name": "sft", "model_adapter_name": "other"}, "no adapter 'other'"),
        ({"ref_adapter_name": "default"}, "'default' is trained, so it cannot be `ref_adapter_name`"),
    ],
)
def test_adapter_names_are_checked(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, model=with_adapters("sft", "default"), **settings)


def test_an_adapter_as_reference_needs_a_peft_model_and_no_other_reference(tmp_path):
    with pytest.raises(ValueError, match="needs a `PeftModel`"):
        make(tmp_path, ref_adapter_name="sft")
    with pytest.raises(ValueError, match="`ref_model=None`"):
        make(tmp_path, model=with_adapters("sft", "default"), ref_model=policy(), ref_adapter_name="sft")


def test_an_adapter_that_is_not_trainable_is_refused(tmp_path):
    adapted(policy()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`is_trainable=True`"):
        make(tmp_path, model=peft.PeftModel.from_pretrained(policy(), tmp_path))


def test_virtual_tokens_are_refused(tmp_path):
    """They would be put before every call, also before each single token of a cached generation."""
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="`model` has an adapter of the type PROMPT_TUNING"):
        make(tmp_path, peft_config=config)
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="`reward_model` has an adapter of the type PROMPT_TUNING"):
        make(tmp_path, reward_model=peft.get_peft_model(classifier(), config))


REWARD_MODELS = {
    "token reward model": lambda: adapted(TokenRewardModel.from_backbone(classifier()), heads=["score", "token_score"]),
    "classifier": lambda: adapted(classifier(), heads=["score"], task_type="SEQ_CLS"),
}


@pytest.mark.parametrize("kind", REWARD_MODELS)
def test_reward_and_value_models_act_with_their_adapters(kind, tmp_path):
    reward_model, value_model = REWARD_MODELS[kind](), adapted(classifier(seed=3), heads=["score"])
    merged_reward, merged_value = (copy.deepcopy(m).merge_and_unload().eval() for m in (reward_model, value_model))
    before, value_before = weights(reward_model), weights(value_model)
    raw = {} if kind == "classifier" else {"token_score_transform": "none", "reward_scale": 1.0, "reward_clip": 1e9}
    trainer = make(tmp_path, reward_model=reward_model, value_model=value_model, **raw, center_rewards=False)
    trainer.train()
    rollout = trainer.rollouts[0]
    length = rollout.completion_ids.shape[1]
    with torch.no_grad():
        values, _ = completion_values(merged_value, *batch(rollout), length)
        if kind == "classifier":
            potentials = prefix_scores(merged_reward, *batch(rollout))[:, -length:]
            last = rollout.completion_mask.sum(1, keepdim=True) - 1
            scores = torch.zeros_like(potentials).scatter(1, last, potentials.gather(1, last))
        else:
            scores = token_scores(merged_reward, *batch(rollout))[:, -length:]
    assert_rollout(rollout, "values", values)
    assert_rollout(rollout, "token_level_scores", scores)
    assert values.std() > 0.05 and scores.std() > 0.05
    # The reward model stays as it is; of the value model, only adapter and head are trained.
    assert changed(before, reward_model) == set()
    trainable = {name for name in value_before if "lora_" in name or "modules_to_save" in name}
    assert changed(value_before, value_model) == trainable


def test_a_value_models_adapter_is_saved(tmp_path):
    base = TokenRewardModel.from_backbone(classifier())
    trainer = make(tmp_path, value_model=ppo_runs.lora(copy.deepcopy(base), modules_to_save=["score"]))
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "saved" / "value_model").eval()
    rollout = trainer.rollouts[1]
    with torch.no_grad():
        trained, stored = (prefix_scores(m, *batch(rollout)) for m in (trainer.model.value_model, loaded))
        untrained = prefix_scores(TokenRewardModel.from_backbone(classifier()).eval(), *batch(rollout))
    assert torch.equal(trained, stored)
    assert (trained - untrained).abs().max() > 1e-2


def test_the_default_value_model_has_adapters_merged_and_trains_as_a_whole(tmp_path):
    reward_model = REWARD_MODELS["token reward model"]()
    merged = copy.deepcopy(reward_model).merge_and_unload()
    value_model = make(tmp_path, reward_model=reward_model).model.value_model
    assert type(value_model) is TokenRewardModel
    for name, tensor in value_model.state_dict().items():
        expected = torch.zeros_like(tensor) if name == "score.weight" else merged.state_dict()[name]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)
    assert {name for name, p in value_model.named_parameters() if not p.requires_grad} == {
        "token_score.weight",
        "token_score.bias",
    }


def test_the_default_value_model_beside_a_reward_function_comes_of_the_policy_with_its_adapter(tmp_path):
    model = adapted(policy())
    merged = copy.deepcopy(model).merge_and_unload().model
    trainer = ppo_runs.make(
        "function",
        tmp_path,
        models=lambda family: {"model": model, "reward_model": ppo_runs.early_letters},
        max_steps=4,
        save_steps=4,
    )
    value_model = trainer.model.value_model
    for name, tensor in value_model.model.state_dict().items():
        torch.testing.assert_close(tensor, merged.state_dict()[name], rtol=0, atol=1e-6)
    assert all(p.requires_grad for p in value_model.model.parameters())
    trainer.train()
    loaded = TokenRewardModel.from_pretrained(tmp_path / "checkpoint-4" / "value_model")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in value_model.state_dict().items())
