"""Token reward models of backbones that differ from Llama's in what they do to padding, buffers and heads."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from model_cases import assert_same, batch
from trl_tokenreward import TokenRewardModel


pytestmark = pytest.mark.any_trl

SIZES = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
MODELS = {
    "rwkv": {"context_length": 64},  # reads padding
    "mamba": {"state_size": 8},
    "falcon_h1": {"head_dim": 16, "mamba_d_ssm": 64, **MAMBA},  # the backbone makes its layers' buffers
    "bloom": {"n_head": 2, "n_layer": 2},  # no positions
    "gemma2": {"head_dim": 16, "sliding_window": 4},
    "mixtral": {"num_local_experts": 4, "output_router_logits": True},
    "opt": {"word_embed_proj_dim": 16, "ffn_dim": 64},
}


def made(kind, auto_class=AutoModelForCausalLM, **kwargs):
    torch.manual_seed(0)
    model = auto_class.from_config(AutoConfig.for_model(kind, **{**SIZES, **HEADS, **MODELS.get(kind, {}), **kwargs}))
    for weight in model.parameters():  # far enough from 0 that the context matters
        if weight.dim() > 1 and weight.std() < 0.06:
            weight.data *= 5
    return model.eval()


@pytest.mark.parametrize("kind", MODELS)
def test_scores_are_those_of_each_row_alone_wherever_the_padding_is_and_after_loading(kind, tmp_path):
    model = TokenRewardModel.from_backbone(made(kind)).eval()
    torch.nn.init.normal_(model.score.weight)
    torch.nn.init.normal_(model.token_score.weight)
    ids, mask = batch()
    model.save_pretrained(tmp_path)
    loaded = TokenRewardModel.from_pretrained(tmp_path)
    with torch.no_grad():
        right, left = model(ids, mask), model(ids.flip(1), mask.flip(1))  # rows in reverse
        rows = [model(row[real.bool()][None]) for row, real in zip(ids, mask, strict=True)]
        reversed_rows = [model(row[real.bool()].flip(0)[None]) for row, real in zip(ids, mask, strict=True)]
        of_loaded = loaded(ids, mask)
    for output, alone, real in ((right, rows, mask), (left, reversed_rows, mask.flip(1))):
        assert_same(output.token_scores[real.bool()], torch.cat([one.token_scores[0] for one in alone]))
        assert_same(output.prefix_scores[real.bool()], torch.cat([one.prefix_scores[0] for one in alone]))
        assert_same(output.logits, torch.cat([one.logits for one in alone]))
    assert_same(of_loaded.token_scores[mask.bool()], right.token_scores[mask.bool()])


def test_hidden_states_and_attentions_stay_in_their_columns():
    model = TokenRewardModel.from_backbone(made("mixtral", attn_implementation="eager")).eval()
    ids, mask = batch()
    arguments = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        output = model(ids.flip(1), mask.flip(1), **arguments)
        alone = model(ids[1, :4].flip(0)[None], **arguments)
    assert_same(output.hidden_states[1][1, 3:], alone.hidden_states[1][0])
    assert_same(output.attentions[1][1, :, 3:, 3:], alone.attentions[1][0])


def test_a_classifier_with_more_than_a_head_is_refused():
    sizes = {"num_labels": 1, "global_attn_every_n_layers": 1}
    classifier = made("modernbert-decoder", AutoModelForSequenceClassification, **sizes)
    with pytest.raises(ValueError, match="ModernBertDecoderForSequenceClassification has more than its head"):
        TokenRewardModel.from_backbone(classifier)
    model = TokenRewardModel.from_backbone(classifier.model)
    with pytest.raises(ValueError, match="has more than its head on the backbone"):
        model.export_sequence_classification("unused")
