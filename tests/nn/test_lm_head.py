"""The head on chosen tokens, chunk by chunk, equals the plain formula on whole logits."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

import tiny
from trl_tokenreward import TokenRewardModel
from trl_tokenreward.nn import lm_head
from trl_tokenreward.nn.lm_head import OutputHead, head_loss, states_and_head, token_logps
from trl_tokenreward.ppo.functional import policy_losses


pytestmark = pytest.mark.any_trl


VOCAB_SIZE, HIDDEN_SIZE, TOKENS = 37, 8, 23


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of at most five tokens, the last of them shorter."""
    monkeypatch.setitem(lm_head._CHUNK_TOKENS, "cpu", 5)


def example(bias=True, dtype=torch.float64, seed=0):
    """A head, states, targets, and the old log-probabilities and advantages of PPO's loss."""
    torch.manual_seed(seed)
    module = nn.Linear(HIDDEN_SIZE, VOCAB_SIZE, bias=bias, dtype=dtype)
    states = torch.randn(TOKENS, HIDDEN_SIZE, dtype=dtype) * 3
    targets = torch.randint(VOCAB_SIZE, (TOKENS,))
    old_logps = torch.log_softmax(module(states).detach(), -1).gather(1, targets[:, None])[:, 0]
    old_logps = old_logps + 0.3 * torch.randn(TOKENS, dtype=dtype)  # so that some ratios are clipped
    return module, states, targets, old_logps, torch.randn(TOKENS, dtype=dtype)


def ppo_loss(old_logps, advantages):
    return lambda logps, rows: policy_losses(logps, old_logps[rows], advantages[rows], 0.2)[0]


def plain(logits_of, states, targets, temperature, token_loss, parameters):
    """Loss, log-probabilities, entropies and gradients by autograd on whole logits, in float64."""
    states = states.detach().requires_grad_()
    log_p = torch.log_softmax(logits_of(states) / temperature, -1)
    logps = log_p.gather(1, targets[:, None])[:, 0]
    loss = token_loss(logps, slice(None)).sum()
    gradients = torch.autograd.grad(loss, [states, *parameters])
    return loss.detach(), logps.detach(), -(log_p.exp() * log_p).sum(-1).detach(), *gradients


def lean(head, states, targets, temperature, token_loss, factor=1.0):
    states = states.detach().requires_grad_()
    head.module.zero_grad()
    loss, logps, entropies = head_loss(head, states, targets, temperature, token_loss)
    (loss * factor).backward()
    gradients = [p.grad for p in head.module.parameters() if p.requires_grad]
    return loss.detach(), logps, entropies, states.grad / factor, *(g / factor for g in gradients)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("temperature", "scale"), [(1.0, 1.0), (0.7, 0.25)])
def test_a_linear_head_equals_the_plain_formula_in_float64(bias, temperature, scale):
    module, states, targets, old_logps, advantages = example(bias)
    token_loss = ppo_loss(old_logps, advantages)
    head = OutputHead(module, VOCAB_SIZE, scale)
    assert head.is_linear
    expected = plain(lambda s: module(s) * scale, states, targets, temperature, token_loss, module.parameters())
    for actual, right in zip(lean(head, states, targets, temperature, token_loss, factor=3.0), expected, strict=True):
        torch.testing.assert_close(actual, right, rtol=1e-12, atol=1e-12)
    assert expected[3].abs().max() > 0.01 and (expected[3] == 0).all(1).any()  # a clipped token teaches nothing
    torch.testing.assert_close(token_logps(head, states, targets, temperature), expected[1], rtol=1e-12, atol=1e-12)


def test_float32_stays_within_two_millionths_of_float64():
    module, states, targets, old_logps, advantages = example()
    expected = plain(module, states, targets, 0.7, ppo_loss(old_logps, advantages), module.parameters())
    single = nn.Linear(HIDDEN_SIZE, VOCAB_SIZE)
    single.load_state_dict(module.state_dict())
    token_loss = ppo_loss(old_logps.float(), advantages.float())
    actual = lean(OutputHead(single, VOCAB_SIZE), states.float(), targets, 0.7, token_loss)
    for ours, right in zip(actual, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), right, rtol=2e-5, atol=2e-6)


class SoftCapped(nn.Linear):
    """Not a plain `nn.Linear`, so it takes the general way."""


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_any_other_head_equals_the_plain_formula(softcap):
    module, states, targets, old_logps, advantages = example()
    other = SoftCapped(HIDDEN_SIZE, VOCAB_SIZE, dtype=torch.float64)
    other.load_state_dict(module.state_dict())
    head = OutputHead(other, VOCAB_SIZE, scale=0.5, softcap=softcap)
    assert not head.is_linear

    def logits_of(x):
        logits = other(x) * 0.5
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    token_loss = ppo_loss(old_logps, advantages)
    expected = plain(logits_of, states, targets, 1.3, token_loss, other.parameters())
    for actual, right in zip(lean(head, states, targets, 1.3, token_loss, factor=2.0), expected, strict=True):
        torch.testing.assert_close(actual, right, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(token_logps(head, states, targets, 1.3), expected[1], rtol=1e-12, atol=1e-12)


def test_a_frozen_head_gets_no_gradient_and_passes_it_on():
    module, states, targets, old_logps, advantages = example()
    token_loss = ppo_loss(old_logps, advantages)
    expected = plain(module, states, targets, 1.0, token_loss, [])
    module.requires_grad_(False)
    actual = lean(OutputHead(module, VOCAB_SIZE), states, targets, 1.0, token_loss)
    torch.testing.assert_close(actual[3], expected[3], rtol=1e-12, atol=1e-12)
    assert module.weight.grad is None and module.bias.grad is None


def test_the_loss_can_be_differentiated_once():
    module, states, targets, old_logps, advantages = example()
    token_loss = ppo_loss(old_logps, advantages)
    loss = head_loss(OutputHead(module, VOCAB_SIZE), states, targets, 1.0, token_loss).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


@pytest.mark.parametrize("mixed", [True, False])
def test_low_precision_is_as_close_as_its_rounding(mixed):
    module, states, targets, old_logps, advantages = example()
    expected = plain(module, states, targets, 1.0, ppo_loss(old_logps, advantages), module.parameters())
    low = nn.Linear(HIDDEN_SIZE, VOCAB_SIZE, dtype=torch.float32 if mixed else torch.bfloat16)
    low.load_state_dict(module.state_dict())
    token_loss = ppo_loss(old_logps.float(), advantages.float())
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        actual = lean(OutputHead(low, VOCAB_SIZE), states.bfloat16(), targets, 1.0, token_loss)
    assert actual[1].dtype == torch.float32  # so that a ratio has more than the three digits of bfloat16
    torch.testing.assert_close(actual[1].double(), expected[1], rtol=0, atol=0.08)
    for ours, right in zip(actual[3:], expected[3:], strict=True):
        assert torch.cosine_similarity(ours.double().flatten(), right.flatten(), 0) > 0.995


def test_no_token_at_all():
    head = OutputHead(nn.Linear(HIDDEN_SIZE, VOCAB_SIZE), VOCAB_SIZE)
    states, targets = torch.zeros(0, HIDDEN_SIZE, requires_grad=True), torch.zeros(0, dtype=torch.long)
    assert token_logps(head, states, targets, 1.0).shape == (0,)
    result = head_loss(head, states, targets, 1.0, lambda logps, rows: logps)
    result.loss.backward()
    assert result.loss == 0 and not head.module.weight.grad.any()


# --- models --------------------------------------------------------------------------------------------------------

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
# What is special about each: nothing, a bias, a scale, a soft cap (also one far above the logits), tied embeddings, an
# output projection, a backbone under another name than the model says.
FAMILIES = {
    "bloom": {},
    "cohere": {"logit_scale": 0.5},
    "falcon": {},
    "gemma": {},
    "gemma2": {"final_logit_softcapping": 3.0},
    "gpt2": {},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 4},
    "granite": {"logits_scaling": 4.0},
    "llama": {},
    "llama4_text": {"intermediate_size_mlp": 32, "num_local_experts": 2},
    "mistral": {},
    "olmo2": {},
    "opt": {"word_embed_proj_dim": 8, "ffn_dim": 32},
    "phi": {},
    "qwen2": {},
    "qwen3": {},
    "recurrent_gemma": {"lru_width": 16, "num_hidden_layers": 3},
    "smollm3": {},
    "stablelm": {},
}


def small_model(family):
    config = AutoConfig.for_model(family)
    names = {*vars(config), *config.attribute_map}
    known = {name: value for name, value in {**SIZES, **FAMILIES[family]}.items() if name in names}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **known)).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_as_its_own_forward_pass_does(family):
    model = small_model(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 3
    ids = torch.randint(40, (2, 9))
    columns = torch.tensor([0, 3, 4, 9, 17])
    with torch.no_grad():
        states, head = states_and_head(model, ids, columns)
        logits = model(ids).logits.flatten(0, 1)[columns].double()
        actual = token_logps(head, states, torch.tensor([3, 9, 39, 0, 7]), 0.8)
    assert lm_head._KNOWN[model], "the model's logits are not explained by its head"
    expected = torch.log_softmax(logits / 0.8, -1)[range(5), [3, 9, 39, 0, 7]]
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.01


def test_states_in_more_precision_than_the_head_are_cast_as_the_model_casts_them():
    """Mamba adds up its states in float32."""
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 8, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **sizes)).eval().to(torch.bfloat16)
    ids, columns = torch.randint(40, (2, 6)), torch.tensor([2, 3, 8])
    with torch.no_grad():
        states, head = states_and_head(model, ids, columns)
        logits = model(ids).logits.flatten(0, 1)[columns].float()
    assert lm_head._KNOWN[model] and states.dtype == torch.float32
    torch.testing.assert_close(head(states, temperature=1.0), logits)


def test_a_model_that_is_trained_with_dropout_is_known_too():
    model = tiny.causal_lm("gpt2").train()
    states_and_head(model, torch.tensor([[3, 4, 5]]), torch.tensor([1]))
    assert lm_head._KNOWN[model] and model.training


class Unusual(LlamaForCausalLM):
    """Does to its logits what nothing in its configuration tells of."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits**3 * 0.1
        return output


def test_a_model_that_is_not_known_is_read_by_its_own_logits_with_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(lm_head.logger, "propagate", True)
    torch.manual_seed(0)
    model = Unusual(tiny.config(initializer_range=0.3)).eval()
    ids, columns = torch.randint(300, (2, 6)), torch.tensor([2, 3, 8])
    targets = ids.flatten()[columns + 1]
    for times in (1, 1):
        states, head = states_and_head(model, ids, columns)
        assert [r.message for r in caplog.records].count(caplog.records[0].message) == times
    assert "Unusual" in caplog.text
    token_loss = ppo_loss(torch.full((3,), -5.7), torch.tensor([1.0, -1.0, 2.0]))
    loss, logps, _ = head_loss(head, states, targets, 0.9, token_loss)
    loss.backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    expected = torch.log_softmax(model(ids).logits.flatten(0, 1)[columns] / 0.9, -1).gather(1, targets[:, None])[:, 0]
    token_loss(expected, slice(None)).sum().backward()
    torch.testing.assert_close(logps, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, model.lm_head.weight.grad, rtol=1e-4, atol=1e-6)
    assert gradient.abs().max() > 0.01


class Nameless(LlamaForCausalLM):
    """Says that its backbone has a name that it has not, and has no model below its head."""

    base_model_prefix = "nothing"

    def __init__(self, config):
        super().__init__(config)
        self.model = nn.ModuleList([self.model])

    def get_input_embeddings(self):
        return self.model[0].get_input_embeddings()

    def forward(self, **kwargs):
        return CausalLMOutput(logits=self.lm_head(self.model[0](**kwargs).last_hidden_state))


def test_a_model_without_a_known_backbone_is_read_by_its_own_logits():
    model = Nameless(tiny.config()).eval()
    ids, columns = torch.randint(300, (2, 6)), torch.tensor([2, 3, 8])
    states, _ = states_and_head(model, ids, columns)
    torch.testing.assert_close(states, model(input_ids=ids).logits.flatten(0, 1)[columns])
    with pytest.raises(ValueError, match="Which part of a Nameless gives the states below its head is not known"):
        TokenRewardModel.from_backbone(model)


@pytest.mark.parametrize("modules", [{"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}])  # fmt: skip
def test_a_head_with_an_adapter_learns_by_it(modules):
    peft = pytest.importorskip("peft")
    base = tiny.causal_lm(vocab_size=40)
    torch.manual_seed(1)
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, init_lora_weights=False, **modules))
    ids, columns = torch.randint(40, (2, 6)), torch.tensor([2, 3, 8])
    targets = ids.flatten()[columns + 1]
    token_loss = ppo_loss(torch.zeros(3) - 4, torch.tensor([1.0, -1.0, 2.0]))
    states, head = states_and_head(model, ids, columns)
    head_loss(head, states, targets, 1.0, token_loss).loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    logps = torch.log_softmax(model(ids).logits.flatten(0, 1)[columns], -1).gather(1, targets[:, None])[:, 0]
    token_loss(logps, slice(None)).sum().backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert set(gradients) == set(trained) and any("lm_head" in name for name in trained)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, trained[name], rtol=1e-4, atol=1e-6)
