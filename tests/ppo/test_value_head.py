"""Values of a head on the policy's own backbone."""

import copy

import pytest
import torch
from torch import nn

import ppo_runs
import tiny
from trl_tokenreward.nn.modules import backbone_of, without_peft
from trl_tokenreward.ppo.forward import completion_values
from trl_tokenreward.ppo.functional import policy_losses, value_losses
from trl_tokenreward.ppo.value_head import ValueHead


pytestmark = pytest.mark.any_trl

SETTINGS = {"max_steps": 8, "save_strategy": "no", "eval_strategy": "no", "logging_steps": 4}


def make(directory, models=None, **settings):
    made = ppo_runs.RUNS["shared trunk"]["models"]("llama") | (models or {})
    return ppo_runs.make("shared trunk", directory, models=lambda family: made, **{**SETTINGS, **settings})


def full_sequence(rollout):
    return torch.cat([rollout.prompt_ids, rollout.completion_ids], 1), torch.cat(
        [rollout.prompt_mask, rollout.completion_mask], 1
    )


def test_values_are_of_the_policys_states(tmp_path):
    trainer = make(tmp_path)
    nn.init.normal_(trainer.value_model.score.weight, std=0.1)
    head, policy = copy.deepcopy(trainer.value_model.score), copy.deepcopy(trainer.policy_model)
    trainer.train()
    rollout = trainer.rollouts[0]
    ids, mask = full_sequence(rollout)
    length = rollout.completion_ids.shape[1]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        states = backbone_of(policy)(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
    expected = head(states).squeeze(-1)[:, -length - 1 : -1].detach()
    real = rollout.completion_mask.bool()
    torch.testing.assert_close(rollout.values[real], expected[real], rtol=0, atol=1e-5)


def test_both_losses_train_the_backbone(tmp_path):
    """A step's gradients are those of the two losses, each computed by hand on the policy's own modules."""
    trainer = make(tmp_path, max_steps=4, learning_rate=1e-12)
    nn.init.normal_(trainer.value_model.score.weight, std=0.1)
    [*groups, last] = next(iter(trainer.get_train_dataloader()))["groups"]
    policy, head, args = trainer.policy_model.train(), trainer.value_model.score, trainer.args
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, last).backward()
    gradient = {name: p.grad.clone() for name, p in policy.named_parameters()}
    trainer.model.zero_grad()
    ids, columns = last["input_ids"], last["columns"]
    output = policy(input_ids=ids, output_hidden_states=True)
    logps = torch.log_softmax(output.logits.flatten(0, 1)[columns], -1)
    logps = logps.gather(1, ids.flatten()[columns + 1].unsqueeze(1)).squeeze(1)
    values = head(output.hidden_states[-1].flatten(0, 1)[columns]).squeeze(-1)
    policy_loss = policy_losses(logps, last["old_per_token_logps"], last["advantages"], args.cliprange)[0].sum()
    value_loss = value_losses(values, last["old_values"], last["returns"], args.cliprange_value)[0].sum()
    ((policy_loss + args.vf_coef * value_loss) / last["num_tokens"]).backward()
    assert value_loss > 0
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-4, atol=1e-7)


def test_the_backbone_runs_once_for_a_group(tmp_path):
    trainer = make(tmp_path, max_steps=4)
    passes, losses, compute_loss = [], [], trainer.compute_loss
    attention = trainer.policy_model.model.layers[0].self_attn
    attention.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    trainer.compute_loss = lambda *args, **kwargs: losses.append(compute_loss(*args, **kwargs)) or losses[-1]
    trainer.train()
    assert sum(passes) == len(losses) > 0
    assert sum(p.numel() for p in trainer.value_model.parameters()) == trainer.policy_model.config.hidden_size + 1


def test_with_an_adapter(tmp_path):
    pytest.importorskip("peft")
    trainer = make(tmp_path, {"peft_config": ppo_runs.lora_config()})
    before = trainer.value_model.score.weight.clone()
    trainer.train()
    assert not torch.equal(before, trainer.value_model.score.weight)
    base = without_peft(trainer.policy_model)
    assert torch.equal(base.lm_head.weight, ppo_runs.RUNS["shared trunk"]["models"]("llama")["model"].lm_head.weight)


def test_the_head_is_saved_and_read(tmp_path):
    trainer = make(tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    saved = ValueHead.read(tmp_path / "saved" / "value_model")
    assert torch.equal(saved["score.weight"], trainer.value_model.score.weight) and saved["score.weight"].any()
    loaded = type(trainer.policy_model).from_pretrained(tmp_path / "saved")
    head = ValueHead(loaded)
    head.load_state_dict(saved)
    ids, mask = full_sequence(trainer.rollouts[1])
    for actual, expected in zip(
        completion_values(head.eval(), ids, mask, 8), completion_values(trainer.value_model, ids, mask, 8), strict=True
    ):
        torch.testing.assert_close(actual, expected)


def test_bad_settings(tmp_path):
    with pytest.raises(ValueError, match="`value_model` has no effect with `share_value_backbone=True`"):
        make(tmp_path, {"value_model": ppo_runs.token_reward_model()})
    policy = ppo_runs.scaled(tiny.causal_lm(vocab_size=ppo_runs.VOCAB_SIZE))
    forward = type(policy).forward

    class Doubling(type(policy)):
        def forward(self, *args, **kwargs):
            output = forward(self, *args, **kwargs)
            output.logits = output.logits * 2
            return output

    policy.__class__ = Doubling
    with pytest.raises(ValueError, match="makes its logits of them is not known"):
        ValueHead(policy)
    plain = make(tmp_path / "plain", share_value_backbone=False)
    plain.train()
    plain.save_model(str(tmp_path / "plain" / "saved"))
    with pytest.raises(ValueError, match="without `share_value_backbone`"):
        ValueHead.read(tmp_path / "plain" / "saved" / "value_model")
