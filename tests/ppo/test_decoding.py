"""Decoding by models that keep their state in other ways than Llama's: recurrent ones, hybrids, ones without a cache."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from trl_tokenreward.ppo.decoding import CachedDecoding, PlainDecoding, decoding_of
from trl_tokenreward.ppo.forward import completion_logps
from trl_tokenreward.ppo.prompts import Prompts, join
from trl_tokenreward.ppo.sampling import generate, uniforms


pytestmark = pytest.mark.any_trl


MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
# Configurations, and how each model decodes.
MODELS = {
    "qwen3_5_text": ({"layer_types": ["linear_attention", "full_attention"], "head_dim": 16, **LINEAR}, CachedDecoding),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, CachedDecoding),
    "falcon_h1": ({"head_dim": 16, "mamba_d_ssm": 64, **MAMBA}, CachedDecoding),  # both states in every layer
    "bamba": ({"attn_layer_indices": [1], **MAMBA}, CachedDecoding),
    "mamba": ({"state_size": 8}, CachedDecoding),  # `cache_params`
    "mamba2": ({"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1}, CachedDecoding),
    "gemma2": ({"head_dim": 16, "sliding_window": 4}, CachedDecoding),
    "mixtral": ({"output_router_logits": True, "num_local_experts": 4}, CachedDecoding),  # an auxiliary loss
    "rwkv": ({"context_length": 64}, PlainDecoding),  # `state`, while `past_key_values` is swallowed
    "recurrent_gemma": ({"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 4}, PlainDecoding),
    "openai-gpt": ({"n_embd": 32, "n_layer": 2, "n_head": 2}, PlainDecoding),  # nothing at all
}


def model_of(kind):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    config = AutoConfig.for_model(kind, **{**sizes, **heads, **tokens, **MODELS[kind][0]})
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():  # far enough from 0 that the context matters
        if weight.dim() > 1 and weight.std() < 0.06:
            weight.data *= 5
    return model


@pytest.mark.parametrize("kind", MODELS)
def test_tokens_are_drawn_given_all_before_them_whatever_the_model_keeps_as_its_state(kind):
    model = model_of(kind)
    ids, mask = torch.randint(3, 64, (4, 7)), torch.ones(4, 7, dtype=torch.long)
    mask[1, :3], mask[2, :6] = 0, 0
    prompts = Prompts(ids, mask)
    arguments = (model, prompts, uniforms((0,), range(4), 10))
    stop = int(generate(*arguments, temperature=0.8, stop_token_id=None, pad_token_id=0).ids[1, 3])
    completions = generate(*arguments, temperature=0.8, stop_token_id=stop, pad_token_id=0)
    lengths = completions.mask.sum(1).tolist()
    assert lengths[1] <= 4 < max(lengths)  # a row has left the batch
    # Row by row, without padding and without a cache.
    for row, length in enumerate(lengths):
        prompt = ids[row][mask[row].bool()]
        with torch.no_grad():
            logits = model(torch.cat([prompt, completions.ids[row, :length]])[None], use_cache=False).logits[0] / 0.8
        expected = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, completions.ids[row, :length, None])
        actual = completions.per_token_logps[row, :length]
        torch.testing.assert_close(actual, expected.squeeze(-1), rtol=0, atol=1e-5)
    # So do the passes that PPO trains with, which pad on the right.
    inputs = join(prompts, completions.ids, completions.mask)
    logps = completion_logps(model, *inputs, max(lengths), 0.8)
    torch.testing.assert_close(completions.per_token_logps, logps, rtol=0, atol=1e-5)
    assert type(decoding_of(model, prompts, 1)) is MODELS[kind][1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cache_is_known_to_serve_at_low_precision(dtype):
    prompts = Prompts(torch.tensor([[5, 6]]), torch.ones(1, 2, dtype=torch.long))
    assert type(decoding_of(tiny.causal_lm().eval().to(dtype), prompts, 1)) is CachedDecoding
    scaled = tiny.causal_lm(vocab_size=64, initializer_range=0.3).eval().to(dtype)
    assert type(decoding_of(scaled, prompts, 1)) is CachedDecoding


def test_a_model_that_is_shown_no_padding_decodes_without_a_cache(caplog):
    """Positions that are counted from the first column, as in models that take none."""
    model = tiny.causal_lm("llama", initializer_range=0.3).eval()
    forward = model.forward

    def shifted(position_ids=None, past_key_values=None, **kwargs):
        return forward(past_key_values=past_key_values, **{**kwargs, "attention_mask": None})

    model.forward = shifted
    prompts = Prompts(torch.tensor([[5, 6]]), torch.ones(1, 2, dtype=torch.long))
    assert type(decoding_of(model, prompts, 1)) is PlainDecoding
    assert "sampled from without a cache" in caplog.text
