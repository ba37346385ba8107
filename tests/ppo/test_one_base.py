"""Policy, reference, value and reward model on one frozen base."""

import copy

import pytest
import torch
from torch import nn

import ppo_runs
import tiny
from trl_tokenreward import ImplicitReward, TokenRewardModel
from trl_tokenreward.nn.modules import backbone_of, without_peft
from trl_tokenreward.ppo import models as ppo_models
from trl_tokenreward.ppo.one_base import base_weights
from trl_tokenreward.reward_model.readout import prefix_scores, token_scores


peft = pytest.importorskip("peft")

pytestmark = pytest.mark.any_trl

SETTINGS = {"max_steps": 8, "save_strategy": "no", "eval_strategy": "no", "logging_steps": 4}


def policy():
    return ppo_runs.scaled(tiny.causal_lm(vocab_size=ppo_runs.VOCAB_SIZE))


def make(directory, reward_model=None, model=None, value_model=None, peft_config=True, **settings):
    model = policy() if model is None else model
    given = {
        "model": model,
        "reward_model": ppo_runs.lora_reward_model(policy()) if reward_model is None else reward_model,
        "peft_config": ppo_runs.lora_config() if peft_config is True else peft_config,
    }
    if value_model is not None:
        given["value_model"] = value_model
    return ppo_runs.make("one base", directory, models=lambda family: given, **{**SETTINGS, **settings})


def storage(*models):
    """Bytes of all the parameters of some models, each counted once."""
    tensors = {p.data_ptr(): p for model in flat(models) for p in model.parameters()}
    return sum(p.numel() * p.element_size() for p in tensors.values())


def flat(models):
    """The modules among some models, rewards and lists of them."""
    for model in models:
        if isinstance(model, nn.Module):
            yield model
        elif isinstance(model, (list, tuple)):
            yield from flat(model)


def base_size(model):
    return sum(p.numel() * p.element_size() for p in model.parameters())


def trained_size(model):
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def adapter_size(model):
    return base_size(model) - sum(
        p.numel() * p.element_size() for p in {id(p): p for p in base_weights(model)}.values()
    )


def assert_values_begin_at_zero(trainer):
    """Those of the first rollout, whose tokens and their mask it returns."""
    first, *_ = trainer.rollouts.values()
    ids = torch.cat([first.prompt_ids, first.completion_ids], 1)
    mask = torch.cat([first.prompt_mask, first.completion_mask], 1)
    assert not first.values.any() and not first.final_values.any()
    return ids, mask


def test_all_models_hold_one_base(tmp_path):
    reward_model = ppo_runs.lora_reward_model(policy())
    initial = copy.deepcopy(reward_model)
    trainer = make(tmp_path, reward_model)
    value_model = trainer.value_model
    assert trainer.ref_model is None
    adapters = sum(map(adapter_size, (trainer.policy_model, value_model, reward_model)))
    heads = sum(p.numel() * 4 for name, p in value_model.named_parameters() if "original_module" in name)
    assert storage(*trainer.models) <= base_size(policy()) + adapters + 2 * heads
    trainer.train()
    ids, mask = assert_values_begin_at_zero(trainer)
    with torch.no_grad():
        # The reward model stays what it was.
        assert torch.equal(token_scores(reward_model, ids, mask), token_scores(initial, ids, mask))
        assert prefix_scores(value_model, ids, mask).abs().max() > 1e-3
    assert torch.equal(without_peft(trainer.policy_model).lm_head.weight, policy().lm_head.weight)
    before = dict(backbone_of(policy()).named_parameters())
    for name, parameter in backbone_of(without_peft(value_model)).named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, before[name.replace(".base_layer", "")]), name


def test_a_run_is_the_same_with_copies_of_the_base(tmp_path, monkeypatch):
    shared = make(tmp_path)
    shared.train()
    monkeypatch.setattr(ppo_models, "will_shard", lambda args: True)
    copies = make(tmp_path)
    copies.train()
    assert storage(*copies.models) > 2.9 * base_size(policy()) > storage(*shared.models)
    (tensors, logs), (expected, expected_logs) = map(ppo_runs.outcome, (shared, copies))
    assert set(tensors) == set(expected) and logs == expected_logs
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name


def test_the_value_model_is_a_new_adapter_on_the_reward_model(tmp_path):
    """A reward model that was trained in full has a base of its own, which the value model shares with it."""
    reward_model = ppo_runs.token_reward_model()
    initial = copy.deepcopy(reward_model)
    trainer = make(tmp_path, reward_model)
    small = 0.2 * base_size(policy())
    assert trained_size(trainer.value_model) < small
    assert storage(trainer.policy_model, reward_model, trainer.value_model) < 2 * base_size(policy()) + 2 * small
    trainer.train()
    assert_values_begin_at_zero(trainer)
    assert all(
        torch.equal(one, other) for one, other in zip(reward_model.parameters(), initial.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    "config", [{}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"init_lora_weights": "pissa"}]
)
def test_with_a_reward_function_the_value_model_is_on_the_policys_base(config, tmp_path):
    trainer = make(tmp_path, ppo_runs.early_letters, peft_config=ppo_runs.lora_config(**config))
    before = [p.clone() for p in base_weights(trainer.value_model) if not p.requires_grad]
    # PiSSA moves weights of the base into the policy's adapter, so the value model has a base of its own.
    bases = 2 if config.get("init_lora_weights") == "pissa" else 1
    assert bases < storage(*trainer.models[:2]) / base_size(policy()) < bases + 0.7
    trainer.train()
    after = [p for p in base_weights(trainer.value_model) if not p.requires_grad]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    trained = [{id(p) for p in model.parameters() if p.requires_grad} for model in trainer.models[:2]]
    assert all(trained) and not set.intersection(*trained)


@pytest.mark.parametrize(
    ("config", "adapted"),
    [
        ({"target_modules": ["k_proj", "lm_head"]}, ["k_proj"]),
        ({"target_modules": ["lm_head"]}, ["q_proj", "v_proj"]),
        ({"target_modules": r".*lm_head"}, ["q_proj", "v_proj"]),
        (
            {"target_modules": ["k_proj"], "trainable_token_indices": {"embed_tokens": [3], "lm_head": [3]}},
            ["embed_tokens", "k_proj"],
        ),
        ({"target_modules": ["k_proj"], "trainable_token_indices": {"lm_head": [3]}}, ["k_proj"]),
    ],
    ids=str,
)
def test_the_value_model_has_no_output_embeddings_to_adapt(config, adapted, tmp_path, caplog):
    given = peft.LoraConfig(task_type="CAUSAL_LM", r=2, **config)
    trainer = make(tmp_path, ppo_runs.early_letters, model=policy(), peft_config=given)
    names = [name.split(".") for name, p in trainer.value_model.named_parameters() if p.requires_grad]
    found = {part for name in names for part in name} & {"embed_tokens", "q_proj", "k_proj", "v_proj"}
    assert sorted(found) == adapted
    assert ("The value model has none of the adapter's `target_modules`" in caplog.text) == ("q_proj" in adapted)
    trainer.train()


def test_a_value_model_that_is_passed_shares_its_base_too(tmp_path):
    value_model = ppo_runs.lora(TokenRewardModel.from_backbone(policy()), modules_to_save=["score"])
    trainer = make(tmp_path, value_model=value_model)
    assert trainer.value_model is value_model
    assert storage(*trainer.models) < 1.8 * base_size(policy())


def test_a_value_model_that_is_trained_in_full_keeps_its_weights(tmp_path):
    """Also where they are equal to the policy's frozen ones, as those of one checkpoint are at first."""
    value_model = TokenRewardModel.from_backbone(policy())
    trainer = make(tmp_path, value_model=value_model)
    assert all(parameter.requires_grad for parameter in value_model.model.parameters())
    shared = {id(parameter) for parameter in trainer.policy_model.parameters()}
    assert shared.isdisjoint(map(id, value_model.parameters()))


def test_an_adapter_of_the_users_shares_its_base_where_that_is_asked(tmp_path):
    model = ppo_runs.lora(policy())
    trainer = make(tmp_path, model=model, peft_config=None, share_base=True)
    assert storage(*trainer.models) < 1.7 * base_size(policy())  # with the copy of the adapter that is the reference
    trainer.train()


def test_an_implicit_reward_holds_the_base_too(tmp_path):
    """Two rewards, a language model's adapter and a reward model's, beside policy and value model: one base."""
    implicit = ImplicitReward(ppo_runs.lora(policy()))
    rewards = [implicit, ppo_runs.lora_reward_model(policy())]
    trainer = make(tmp_path, rewards)
    models = (*trainer.models[:2], *rewards)
    assert storage(*models) < 2.5 * base_size(policy())
    assert storage(*models) < base_size(policy()) + 1.2 * sum(
        map(adapter_size, (*models[:2], implicit.model, rewards[1]))
    )
    trainer.train()


def test_without_a_shared_base_the_value_model_is_trained_in_full(tmp_path):
    trainer = make(tmp_path, share_base=False)
    assert trained_size(trainer.value_model) > 0.9 * base_size(trainer.value_model)
    assert storage(*trainer.models) > 2.9 * base_size(policy())


def test_other_weights_stay_what_they_are(tmp_path):
    """One layer of the reward model's base differs, so it is no other model's."""
    base = policy()
    nn.init.normal_(base.model.layers[0].mlp.up_proj.weight)
    trainer = make(tmp_path, ppo_runs.lora_reward_model(base))
    ours, theirs = (backbone_of(without_peft(m)).layers[0] for m in (trainer.policy_model, trainer.reward_model))
    assert torch.equal(theirs.mlp.up_proj.weight, base.model.layers[0].mlp.up_proj.weight)
    assert ours.mlp.up_proj.weight is not theirs.mlp.up_proj.weight
    assert ours.mlp.gate_proj.weight is theirs.mlp.gate_proj.weight


@pytest.mark.parametrize("kind", ["adapter", "function"])
def test_bfloat16(kind, tmp_path, caplog):
    base = policy().to(torch.bfloat16)
    reward = ppo_runs.early_letters if kind == "function" else ppo_runs.lora_reward_model(copy.deepcopy(base))
    trainer = make(tmp_path, reward, model=base, bf16=True)
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    assert "are trained in" not in caplog.text
    assert storage(*trainer.models) < 2 * base_size(base)
    trainer.train()
    assert all(p.dtype == torch.bfloat16 for p in base_weights(trainer.policy_model))


class Quantized(nn.Linear):
    """A layer whose weights are 8-bit integers with a scale, as bitsandbytes has them, and cannot be trained."""

    def __init__(self, linear):
        super().__init__(1, 1, bias=False)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = float(linear.weight.abs().max()) / 127
        self.weight = nn.Parameter((linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x):
        return x @ (self.weight.to(x.dtype) * self.scale).T


def quantized(model):
    for layer in model.model.layers:
        layer.mlp.up_proj = Quantized(layer.mlp.up_proj)
        layer.self_attn.k_proj = Quantized(layer.self_attn.k_proj)
    return model


def test_a_quantized_base(tmp_path):
    model = quantized(policy())
    trainer = make(tmp_path, ppo_runs.lora_reward_model(copy.deepcopy(model)), model=model)
    weights = [
        backbone_of(without_peft(m)).layers[0].mlp.up_proj.weight for m in (*trainer.models[:2], trainer.reward_model)
    ]
    assert weights[0].dtype == torch.int8 and len({id(weight) for weight in weights}) == 1
    trainer.train()
    assert trainer.rollouts[1].kl.abs().max() > 1e-3


def test_the_adapters_are_saved_each_by_itself(tmp_path):
    trainer = make(tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert not list((tmp_path / "saved").rglob("model*.safetensors"))
    value_model = peft.PeftModel.from_pretrained(
        TokenRewardModel.from_backbone(policy()), str(tmp_path / "saved" / "value_model")
    )
    loaded = peft.PeftModel.from_pretrained(policy(), str(tmp_path / "saved"))
    ids = torch.arange(1, 8).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(
            prefix_scores(value_model, ids, torch.ones_like(ids)),
            prefix_scores(trainer.value_model, ids, torch.ones_like(ids)),
        )
        torch.testing.assert_close(loaded(ids).logits, trainer.policy_model(ids).logits)


def test_bad_settings(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`share_base=True` needs a policy with an adapter"):
        make(tmp_path, peft_config=None, share_base=True)
    monkeypatch.setattr(ppo_models, "will_shard", lambda args: True)
    with pytest.raises(ValueError, match="`share_base=True` has no effect under FSDP"):
        make(tmp_path, share_base=True)
