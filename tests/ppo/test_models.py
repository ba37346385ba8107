"""What is random in training is switched off, wherever a model keeps it."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trl_tokenreward.ppo.models import _disable_dropout


pytestmark = pytest.mark.any_trl

# Modules, numbers of layers, rates that layers read in their configuration, noise of experts' inputs.
MODELS = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.3},
    "llama": {"attention_dropout": 0.3},
    "falcon": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "mixtral": {"router_jitter_noise": 0.3, "num_local_experts": 4},
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_in_training_says_what_it_says_in_evaluation(kind):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 16} if kind in ("llama", "mixtral") else {}
    own = {} if kind == "gpt2" else sizes
    config = AutoConfig.for_model(kind, vocab_size=64, **own, **MODELS[kind])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).train()
    saved = config.to_dict()
    ids = torch.tensor([[5, 9, 4, 7]])
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, model(ids).logits)
        _disable_dropout(model)
        torch.testing.assert_close(model(ids).logits, model.eval()(ids).logits)
    assert model.config.to_dict() == saved  # a checkpoint says what the model was made with
