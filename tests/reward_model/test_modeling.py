"""The token reward model, on four families of backbones."""

import json
import os
from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import processors
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BitsAndBytesConfig,
    ByT5Tokenizer,
    CLIPVisionConfig,
    LlamaForCausalLM,
    LlavaConfig,
    MambaConfig,
    MambaModel,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTModel,
    T5Config,
    T5ForConditionalGeneration,
)

import tiny
from trl_tokenreward import TokenRewardModel, TokenRewardModelConfig


pytestmark = pytest.mark.any_trl


FAMILIES = ["llama", "qwen2", "gpt2", "gpt_neox"]
BACKBONE_PREFIX = {"llama": "model", "qwen2": "model", "gpt2": "transformer", "gpt_neox": "gpt_neox"}

# Memory-mapped weights are aligned otherwise than allocated ones, which changes the last bit of some products.
SAME = {"rtol": 1e-5, "atol": 1e-5}


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, **SAME)


def token_classifier(family: str, seed: int = 2, **kwargs):
    torch.manual_seed(seed)
    model = AutoModelForTokenClassification.from_config(tiny.config(family, num_labels=1, **kwargs))
    head = model.classifier if hasattr(model, "classifier") else model.score
    torch.nn.init.constant_(head.bias, 0.5)
    return model.eval()


def reward_model(family: str = "llama", **kwargs) -> TokenRewardModel:
    """In evaluation mode, with both heads far from zero, so that differences show."""
    model = TokenRewardModel.from_backbone(tiny.causal_lm(family, **kwargs)).eval()
    torch.manual_seed(3)
    torch.nn.init.normal_(model.score.weight)
    torch.nn.init.normal_(model.token_score.weight)
    torch.nn.init.constant_(model.token_score.bias, 0.25)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded rows of 7, 4 and 1 tokens; no pad token (0) within."""
    generator = torch.Generator().manual_seed(4)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])
    return torch.randint(3, 300, mask.shape, generator=generator) * mask, mask


def flipped(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Right-padded rows, left-padded."""
    rows = zip(mask.sum(1).tolist(), values, strict=True)
    return torch.stack([row.roll(len(row) - length) for length, row in rows])


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    """Folders of a causal language model of each family."""
    folders = {}
    for name in FAMILIES:
        folders[name] = str(tmp_path_factory.mktemp(name))
        tiny.causal_lm(name).save_pretrained(folders[name])
    return folders


class TestConfig:
    def test_is_the_backbones(self):
        backbone = tiny.config("gpt2")
        config = TokenRewardModelConfig(text_config=backbone)
        assert config.get_text_config() is backbone
        assert config.model_type == "token_reward"
        assert config.num_labels == 1
        assert config.tie_word_embeddings is False
        # GPT-2 has these under names of its own: n_embd, n_positions, n_layer, n_head.
        assert (config.hidden_size, config.max_position_embeddings, config.vocab_size) == (16, 128, 300)
        assert (config.num_hidden_layers, config.num_attention_heads) == (2, 2)

    def test_pad_token_is_one_for_both(self):
        config = TokenRewardModelConfig(text_config=tiny.config("llama", pad_token_id=None))
        assert config.pad_token_id is None
        config.pad_token_id = 5
        assert config.text_config.pad_token_id == 5
        config.text_config.pad_token_id = 7
        assert config.pad_token_id == 7

    def test_text_config_may_be_a_dict(self):
        backbone = tiny.config("qwen2")
        config = TokenRewardModelConfig(text_config=backbone.to_dict())
        assert type(config.text_config) is type(backbone)
        assert config.text_config.to_dict() == backbone.to_dict()

    def test_serialised_and_read_again(self, tmp_path, family):
        config = TokenRewardModelConfig(text_config=tiny.config(family, pad_token_id=9))
        config.save_pretrained(tmp_path)
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert type(loaded) is TokenRewardModelConfig
        assert loaded.pad_token_id == 9
        ignored = {"_name_or_path", "transformers_version"}
        for mine, other in [(loaded, config), (loaded.text_config, config.text_config)]:
            values, expected = mine.to_dict(), other.to_dict()
            for name in ignored | {"text_config"}:
                values.pop(name, None), expected.pop(name, None)
            assert values == expected

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({}, ValueError, "needs `text_config`"),
            ({"text_config": "llama"}, TypeError, "must be a `PreTrainedConfig` or a `dict`, got str"),
            ({"text_config": {"hidden_size": 16}}, ValueError, "names no `model_type`"),
            ({"text_config": tiny.config("llama"), "num_labels": 3}, ValueError, "`num_labels` is 3"),
            ({"text_config": tiny.config("llama"), "id2label": {0: "a", 1: "b"}}, ValueError, "`num_labels` is 2"),
            ({"text_config": T5Config()}, ValueError, "`t5` is an encoder-decoder"),
            (
                {"text_config": LlavaConfig(text_config=tiny.config("llama"), vision_config=CLIPVisionConfig())},
                ValueError,
                "`llava` is made of several models",
            ),
        ],
    )
    def test_bad_arguments(self, arguments, error, message):
        with pytest.raises(error, match=message):
            TokenRewardModelConfig(**arguments)


class TestForward:
    def test_heads_read_the_last_hidden_state(self, family):
        model = reward_model(family)
        ids, mask = batch()
        output = model(ids, mask)
        hidden = model.model(ids, attention_mask=mask).last_hidden_state
        assert output.token_scores.shape == output.prefix_scores.shape == (3, 7)
        assert output.logits.shape == (3, 1)
        token_scores = hidden @ model.token_score.weight[0] + 0.25
        prefix_scores = hidden @ model.score.weight[0]
        assert_same(output.token_scores[mask == 1], token_scores[mask == 1])
        assert_same(output.prefix_scores[mask == 1], prefix_scores[mask == 1])
        assert_same(output.logits.squeeze(1), prefix_scores[[0, 1, 2], [6, 3, 0]])

    def test_left_and_right_padding_give_the_same_scores(self, family):
        model = reward_model(family)
        ids, mask = batch()
        right = model(ids, mask)
        left_mask = flipped(mask, mask)
        left = model(flipped(mask, ids), left_mask)
        assert_same(left.logits, right.logits)
        for name in ("token_scores", "prefix_scores"):
            assert_same(left[name][left_mask == 1], right[name][mask == 1])
            assert left[name].isfinite().all()

    def test_padding_gives_the_scores_of_each_row_alone(self, family):
        model = reward_model(family)
        ids, mask = batch()
        output = model(ids, mask)
        for row, length in enumerate(mask.sum(1).tolist()):
            alone = model(ids[row : row + 1, :length])
            assert_same(output.logits[row], alone.logits[0])
            assert_same(output.token_scores[row, :length], alone.token_scores[0])

    def test_junk_in_masked_columns_changes_nothing(self, family):
        model = reward_model(family)
        ids, mask = batch()
        junk = torch.where(mask == 1, ids, 299 - ids)
        for side in (lambda values: values, lambda values: flipped(mask, values)):
            clean, dirty = model(side(ids), side(mask)), model(side(junk), side(mask))
            assert torch.equal(clean.logits, dirty.logits)
            assert torch.equal(clean.token_scores[side(mask) == 1], dirty.token_scores[side(mask) == 1])

    def test_a_token_is_scored_in_its_own_column(self, family):
        model = reward_model(family)
        ids, _ = batch()
        changed = ids.clone()
        changed[0, 4] = 299 - changed[0, 4]
        before, after = model(ids[:1]), model(changed[:1])
        for name in ("token_scores", "prefix_scores"):
            same = (before[name][0] - after[name][0]).abs() < 1e-5
            assert same.tolist() == [True] * 4 + [False] * 3

    def test_positions_can_be_given(self, family):
        model = reward_model(family)
        ids, mask = batch()
        counted = model(ids, mask)
        given = model(ids, mask, position_ids=torch.arange(7).expand(3, 7))
        assert_same(given.token_scores[mask == 1], counted.token_scores[mask == 1])
        shuffled = model(ids, mask, position_ids=torch.tensor([[3, 1, 4, 0, 5, 2, 6]] * 3))
        assert not torch.allclose(shuffled.logits[0], counted.logits[0])

    def test_mask_of_booleans_and_embeddings_instead_of_ids(self, family):
        model = reward_model(family)
        ids, mask = batch()
        expected = model(ids, mask)
        assert torch.equal(model(ids, mask.bool()).logits, expected.logits)
        embedded = model(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask)
        assert_same(embedded.logits, expected.logits)

    def test_sequence_ends_at_the_last_real_token_past_a_gap(self):
        model = reward_model()
        ids, _ = batch()
        output = model(ids[:1], torch.tensor([[1, 1, 0, 0, 1, 0, 0]]))
        assert torch.equal(output.logits[0, 0], output.prefix_scores[0, 4])

    def test_hidden_states_are_passed_through(self, family):
        model = reward_model(family)
        ids, mask = batch()
        output = model(ids, mask, output_hidden_states=True)
        assert len(output.hidden_states) == 3  # the embeddings and two layers
        assert_same(output.logits, model(ids, mask).logits)
        assert "hidden_states" not in model(ids, mask)

    def test_arguments_that_peft_and_trl_pass_along(self):
        model = reward_model()
        ids, mask = batch()
        output = model(ids, mask, labels=None, return_dict=None, output_attentions=None, use_cache=False)
        assert torch.equal(output.logits, model(ids, mask).logits)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"attention_mask": torch.tensor([[1] * 7, [0] * 7, [0] * 7])}, "Row 1 has no real token"),
            ({"attention_mask": torch.ones(3, 1, 7, 7)}, r"shape \(B, L\), got \(3, 1, 7, 7\)"),
            ({"labels": torch.zeros(3)}, "computes no loss"),
            ({"use_cache": True}, "keeps no cache"),
            ({"past_key_values": object()}, "pass the whole text"),
            ({"return_dict": False}, "`return_dict=False` is not supported"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            reward_model()(batch()[0], **arguments)

    def test_costs_one_forward_pass_and_two_products(self, family):
        model = reward_model(family)
        ids, mask = batch()

        def flops(module, **inputs):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                module(input_ids=ids, attention_mask=mask, position_ids=torch.arange(7).expand(3, 7), **inputs)
            return counter.get_total_flops()

        calls = []
        model.model.register_forward_hook(lambda *_: calls.append(1))
        heads = 2 * (2 * ids.numel() * model.config.hidden_size)
        assert flops(model) == flops(model.model, use_cache=False) + heads
        assert len(calls) == 2  # one by each of the two counts

    def test_backbones_without_positions_or_projections_of_their_own(self):
        # Mamba knows no `position_ids`, OPT keeps its layers in a decoder.
        mamba = MambaModel(MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, vocab_size=300))
        sizes = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        opt = OPTModel(OPTConfig(**sizes, word_embed_proj_dim=16, vocab_size=300))
        ids, mask = batch()
        for backbone in (mamba, opt):
            model = TokenRewardModel.from_backbone(backbone.eval())
            left, right = model(flipped(mask, ids), flipped(mask, mask)), model(ids, mask)
            assert_same(left.logits, right.logits)


class TestPrecision:
    def test_bfloat16_weights_give_float32_scores(self, checkpoints, family):
        model = TokenRewardModel.from_pretrained(checkpoints[family], dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert model.dtype == model.config.dtype == torch.bfloat16
        ids, mask = batch()
        output = model(ids, mask)
        assert output.logits.dtype == output.token_scores.dtype == output.prefix_scores.dtype == torch.float32
        hidden = model.model(ids, attention_mask=mask).last_hidden_state.float()
        prefix_scores = hidden @ model.score.weight[0].float()
        assert_same(output.prefix_scores[mask == 1], prefix_scores[mask == 1])
        # Computed in bfloat16 they would be other numbers, with 8 bits.
        assert not torch.equal(output.prefix_scores, output.prefix_scores.bfloat16().float())

    def test_mixed_precision_leaves_the_heads_alone(self):
        model = reward_model()
        ids, mask = batch()
        with torch.autocast("cpu", torch.bfloat16):
            output = model(ids, mask)
        assert output.logits.dtype == torch.float32
        assert not torch.equal(output.token_scores, output.token_scores.bfloat16().float())

    def test_trains_in_bfloat16(self):
        model = reward_model().bfloat16().train()
        output = model(*batch())
        (output.logits.sum() + output.token_scores.sum()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name

    def test_dtype_of_a_converted_model_is_that_of_its_checkpoint(self, tmp_path):
        model = reward_model().bfloat16()
        model.float().save_pretrained(tmp_path)
        assert TokenRewardModel.from_pretrained(tmp_path).dtype == torch.float32
        assert TokenRewardModel.from_pretrained(tmp_path, dtype="bfloat16").score.weight.dtype == torch.bfloat16


class TestFromCausalLM:
    def test_keeps_the_backbone_and_starts_the_heads(self, checkpoints, family):
        causal_lm = tiny.causal_lm(family)
        torch.manual_seed(7)
        model = TokenRewardModel.from_pretrained(checkpoints[family])
        for name, weight in causal_lm.base_model.state_dict().items():
            assert torch.equal(model.model.state_dict()[name], weight), name
        assert not model.training
        assert torch.count_nonzero(model.token_score.weight) == torch.count_nonzero(model.token_score.bias) == 0
        assert model.token_head_is_trained is False
        assert torch.count_nonzero(model(*batch()).token_scores) == 0
        assert model.name_or_path == model.config._name_or_path == checkpoints[family]
        assert model.config.get_text_config() is model.model.config

    def test_sequence_head_is_initialised_as_a_sequence_classifiers(self, checkpoints, family):
        torch.manual_seed(7)
        expected = AutoModelForSequenceClassification.from_pretrained(checkpoints[family], num_labels=1)
        torch.manual_seed(7)
        model = TokenRewardModel.from_pretrained(checkpoints[family], num_labels=1)
        assert torch.equal(model.score.weight, expected.score.weight)
        again = TokenRewardModel.from_pretrained(checkpoints[family])
        assert not torch.equal(again.score.weight, expected.score.weight)

    def test_sequence_head_has_the_backbones_range(self):
        config = tiny.config("llama", initializer_range=0.5)
        config.hidden_size = 4096
        config.num_hidden_layers = 0
        model = TokenRewardModel(TokenRewardModelConfig(text_config=config))
        assert abs(float(model.score.weight.detach().std()) - 0.5) < 0.03  # five standard errors

    def test_either_parameter_makes_the_token_head_trained(self):
        for parameter in ("weight", "bias"):
            model = TokenRewardModel.from_backbone(tiny.causal_lm())
            getattr(model.token_score, parameter).data.view(-1)[0] = 1e-8
            assert model.token_head_is_trained is True

    def test_arguments_reach_the_backbone(self, checkpoints, family):
        model = TokenRewardModel.from_pretrained(
            checkpoints[family], attn_implementation="eager", pad_token_id=5, device_map="cpu"
        )
        assert model.config._attn_implementation == model.model.config._attn_implementation == "eager"
        assert model.config.pad_token_id == model.model.config.pad_token_id == 5
        sdpa = TokenRewardModel.from_pretrained(checkpoints[family])
        assert sdpa.config._attn_implementation == sdpa.model.config._attn_implementation == "sdpa"

    def test_made_of_a_configuration_in_its_dtype(self, family):
        config = TokenRewardModelConfig(text_config=tiny.config(family, dtype="bfloat16"))
        model = AutoModel.from_config(config)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert {parameter.dtype for parameter in TokenRewardModel(config).parameters()} == {torch.bfloat16}

    def test_configuration_can_be_given(self, checkpoints):
        config = AutoConfig.from_pretrained(checkpoints["llama"])
        config.attention_dropout = 0.25
        model = TokenRewardModel.from_pretrained(checkpoints["llama"], config=config)
        assert model.config.text_config.attention_dropout == 0.25

    def test_tokenizer_beside_the_weights_is_found(self, tmp_path):
        tokenizer = tiny.tokenizer()
        tokenizer.save_pretrained(tmp_path)
        reward_model().save_pretrained(tmp_path)
        text = "the quick brown fox"
        assert AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == tokenizer(text).input_ids


class TestFromClassifiers:
    def test_sequence_classifier_keeps_its_head(self, tmp_path, family):
        classifier = tiny.sequence_classifier(family).eval()
        torch.nn.init.normal_(classifier.score.weight)
        classifier.save_pretrained(tmp_path)
        model = TokenRewardModel.from_pretrained(tmp_path)
        ids, mask = batch()
        output = model(ids, mask)
        assert_same(output.logits, classifier(ids, attention_mask=mask).logits)
        assert model.token_head_is_trained is False
        assert torch.count_nonzero(output.token_scores) == 0

    def test_token_classifiers_head_becomes_the_token_head(self, tmp_path, family):
        classifier = token_classifier(family)
        classifier.save_pretrained(tmp_path)
        torch.manual_seed(7)
        model = TokenRewardModel.from_pretrained(tmp_path)
        ids, mask = batch()
        expected = classifier(ids, attention_mask=mask).logits[..., 0]
        assert_same(model(ids, mask).token_scores[mask == 1], expected[mask == 1])
        assert model.token_score.bias.item() == 0.5
        assert model.token_head_is_trained is True
        torch.manual_seed(7)
        again = TokenRewardModel.from_pretrained(tmp_path)
        assert torch.equal(model.score.weight, again.score.weight)
        assert torch.count_nonzero(model.score.weight) == 16

    @pytest.mark.parametrize("auto_class", [AutoModelForSequenceClassification, AutoModelForTokenClassification])
    def test_more_than_one_label_is_an_error(self, tmp_path, auto_class):
        auto_class.from_config(tiny.config("llama", num_labels=3)).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="with 3 labels"):
            TokenRewardModel.from_pretrained(tmp_path, num_labels=1)
        with pytest.raises(ValueError, match="has 3 labels"):
            TokenRewardModel.from_backbone(auto_class.from_config(tiny.config("llama", num_labels=3)))

    def test_other_reward_models_heads_are_dropped_with_a_warning(self, checkpoints, tmp_path, monkeypatch):
        tiny.causal_lm().save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        config["architectures"] = ["LlamaForProcessRewardModel"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        warnings = []
        monkeypatch.setattr("trl_tokenreward.reward_model.modeling.logger.warning", warnings.append)
        TokenRewardModel.from_pretrained(tmp_path)
        TokenRewardModel.from_pretrained(checkpoints["llama"])
        assert [warning.split("LlamaFor")[1] for warning in warnings] == [
            "ProcessRewardModel: its backbone is loaded, its head is not."
        ]


class TestRefused:
    def test_other_numbers_of_labels(self, checkpoints):
        with pytest.raises(ValueError, match="`num_labels` is 2"):
            TokenRewardModel.from_pretrained(checkpoints["llama"], num_labels=2)

    def test_encoder_decoders(self, tmp_path):
        sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
        model = T5ForConditionalGeneration(T5Config(**sizes))
        model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="is an encoder-decoder"):
            TokenRewardModel.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match="is an encoder-decoder"):
            TokenRewardModel.from_backbone(model)

    def test_bidirectional_encoders(self, tmp_path):
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        BertModel(BertConfig(**sizes, vocab_size=32)).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="BertModel is not causal"):
            TokenRewardModel.from_pretrained(tmp_path)

    def test_pickles(self, tmp_path):
        model = tiny.causal_lm()
        model.config.save_pretrained(tmp_path)
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        with pytest.raises(OSError, match="safetensors"):
            TokenRewardModel.from_pretrained(tmp_path)
        for value in (False, None):
            with pytest.raises(ValueError, match="`use_safetensors` must be `True`"):
                TokenRewardModel.from_pretrained(tmp_path, use_safetensors=value)

    def test_own_pickles(self, tmp_path):
        model = reward_model()
        model.config.save_pretrained(tmp_path)
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        with pytest.raises(OSError, match="safetensors"):
            AutoModel.from_pretrained(tmp_path)

    def test_code_from_the_checkpoint(self, tmp_path):
        (tmp_path / "config.json").write_text(
            json.dumps(
                {"model_type": "unheard_of", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
            )
        )
        (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
        with pytest.raises(ValueError, match="trust_remote_code"):
            TokenRewardModel.from_pretrained(tmp_path)
        assert not (tmp_path / "ran").exists()
        # The same folder does run its code where that is allowed, so the refusal above is what held it back.
        with pytest.raises(Exception):  # noqa: B017
            TokenRewardModel.from_pretrained(tmp_path, trust_remote_code=True)
        assert (tmp_path / "ran").exists()

    def test_adapters(self, tmp_path):
        model = get_peft_model(reward_model(), LoraConfig(target_modules=["q_proj"], modules_to_save=["score"]))
        model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="holds a PEFT adapter"):
            TokenRewardModel.from_pretrained(tmp_path)

    def test_loading_info_of_other_checkpoints(self, checkpoints, tmp_path):
        with pytest.raises(ValueError, match="one of `gpt2`"):
            TokenRewardModel.from_pretrained(checkpoints["gpt2"], output_loading_info=True)
        reward_model().save_pretrained(tmp_path)
        model, info = TokenRewardModel.from_pretrained(tmp_path, output_loading_info=True)
        assert type(model) is TokenRewardModel
        assert not info["missing_keys"] and not info["unexpected_keys"]

    def test_more_positional_arguments(self, checkpoints):
        with pytest.raises(TypeError, match="one positional argument"):
            TokenRewardModel.from_pretrained(checkpoints["llama"], 1)


class TestFromBackbone:
    @pytest.mark.parametrize("copy", [True, False])
    @pytest.mark.parametrize("kind", ["causal_lm", "backbone", "sequence", "token", "own"])
    def test_every_kind_of_model(self, family, kind, copy):
        source = {
            "causal_lm": tiny.causal_lm,
            "backbone": lambda name: tiny.causal_lm(name).base_model,
            "sequence": tiny.sequence_classifier,
            "token": token_classifier,
            "own": reward_model,
        }[kind](family).eval()
        before = deepcopy(source.state_dict())
        model = TokenRewardModel.from_backbone(source, copy=copy)
        ids, mask = batch()
        output = model(ids, mask)
        if kind == "sequence":
            assert_same(output.logits, source(ids, attention_mask=mask).logits)
        if kind == "token":
            expected = source(ids, attention_mask=mask).logits[..., 0]
            assert_same(output.token_scores[mask == 1], expected[mask == 1])
        if kind == "own":
            assert torch.equal(output.token_scores, source(ids, mask).token_scores)
        assert model.token_head_is_trained is (kind in ("token", "own"))

        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        after = source.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before) is copy

    def test_copy_is_trainable_and_shared_is_as_it_was(self):
        source = reward_model().requires_grad_(False)
        assert all(parameter.requires_grad for parameter in TokenRewardModel.from_backbone(source).parameters())
        assert not any(parameter.requires_grad for parameter in source.parameters())
        shared = TokenRewardModel.from_backbone(source, copy=False)
        assert not any(parameter.requires_grad for parameter in shared.parameters())

    def test_mode_is_the_sources(self):
        assert TokenRewardModel.from_backbone(tiny.causal_lm().train()).training
        assert not TokenRewardModel.from_backbone(tiny.causal_lm().eval()).training

    def test_replaced_modules_are_not_initialised_anew(self, family):
        causal_lm = tiny.causal_lm(family)
        embeddings = torch.nn.Embedding(300, 16)
        causal_lm.set_input_embeddings(embeddings)
        model = TokenRewardModel.from_backbone(causal_lm)
        assert torch.equal(model.get_input_embeddings().weight, embeddings.weight)
        assert embeddings.weight.std() > 0.5  # as torch makes them; transformers would have made them 0.02

    def test_attention_implementation_is_kept(self):
        causal_lm = tiny.causal_lm()
        causal_lm.set_attn_implementation("eager")
        model = TokenRewardModel.from_backbone(causal_lm)
        assert causal_lm.config._attn_implementation == model.model.config._attn_implementation == "eager"

    def test_adapter_is_merged_into_the_copy(self):
        adapter = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        causal_lm = get_peft_model(tiny.causal_lm().eval(), adapter)
        model = TokenRewardModel.from_backbone(causal_lm)
        ids, mask = batch()
        expected = causal_lm(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
        assert_same(model.model(ids, attention_mask=mask).last_hidden_state[mask == 1], expected[mask == 1])
        assert not any("lora" in name for name, _ in model.named_parameters())
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert any("lora" in name for name, _ in causal_lm.named_parameters())
        with pytest.raises(ValueError, match="cannot be shared"):
            TokenRewardModel.from_backbone(causal_lm, copy=False)
        with pytest.raises(ValueError, match="Pass the PEFT model around it"):
            TokenRewardModel.from_backbone(causal_lm.get_base_model())

    def test_other_objects(self):
        with pytest.raises(TypeError, match="must be a `PreTrainedModel`, got Linear"):
            TokenRewardModel.from_backbone(torch.nn.Linear(2, 2))


class TestSaving:
    def test_round_trip_is_exact(self, tmp_path, family):
        model = reward_model(family)
        model.save_pretrained(tmp_path)
        loaded = TokenRewardModel.from_pretrained(tmp_path)
        expected = model.state_dict()
        assert loaded.state_dict().keys() == expected.keys()
        for name, weight in loaded.state_dict().items():
            assert torch.equal(weight, expected[name]), name
        ids, mask = batch()
        assert_same(loaded(ids, mask).token_scores, model(ids, mask).token_scores)
        assert_same(loaded(ids, mask).logits, model(ids, mask).logits)
        assert not loaded.training
        assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]

    @pytest.mark.parametrize("name", ["llama", "gpt2"])
    def test_tied_embeddings(self, tmp_path, name):
        causal_lm = tiny.causal_lm(name, tie_word_embeddings=True)
        assert causal_lm.get_output_embeddings().weight is causal_lm.get_input_embeddings().weight
        causal_lm.save_pretrained(tmp_path / "causal_lm")
        model = TokenRewardModel.from_pretrained(tmp_path / "causal_lm")
        model.save_pretrained(tmp_path / "own")
        loaded = TokenRewardModel.from_pretrained(tmp_path / "own")
        assert torch.equal(loaded.get_input_embeddings().weight, causal_lm.get_input_embeddings().weight)

    def test_sharded(self, tmp_path):
        model = reward_model()
        model.save_pretrained(tmp_path, max_shard_size="10KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
        loaded = TokenRewardModel.from_pretrained(tmp_path)
        assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in loaded.state_dict().items())

    def test_mixture_of_experts(self, tmp_path):
        # transformers stores its experts otherwise than it holds them.
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = MixtralConfig(**sizes, num_key_value_heads=1, num_local_experts=2, vocab_size=300, pad_token_id=0)
        causal_lm = MixtralForCausalLM(config).eval()
        chosen = causal_lm.config._experts_implementation
        model = TokenRewardModel.from_backbone(causal_lm)
        assert causal_lm.config._experts_implementation == model.model.config._experts_implementation == chosen
        assert chosen is not None
        model.save_pretrained(tmp_path)
        loaded = TokenRewardModel.from_pretrained(tmp_path)
        assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in loaded.state_dict().items())
        assert_same(loaded(*batch()).logits, model(*batch()).logits)
        model.export_sequence_classification(tmp_path / "export")
        exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export")
        assert_same(exported(batch()[0], attention_mask=batch()[1]).logits, model(*batch()).logits)

    def test_configuration_holds_no_path(self, checkpoints, tmp_path):
        TokenRewardModel.from_pretrained(checkpoints["llama"]).save_pretrained(tmp_path)
        assert checkpoints["llama"] not in (tmp_path / "config.json").read_text()

    def test_auto_classes(self, tmp_path, family):
        model = reward_model(family)
        model.save_pretrained(tmp_path)
        ids, mask = batch()
        expected = model(ids, mask)
        bare = AutoModel.from_pretrained(tmp_path)
        classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1, dtype=torch.float32)
        for loaded in (bare, classifier):
            assert type(loaded) is TokenRewardModel
            assert_same(loaded(ids, mask).token_scores, expected.token_scores)
        assert type(AutoModel.from_config(bare.config)) is TokenRewardModel
        with pytest.raises(ValueError, match="`num_labels` is 2"):
            AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2)

    def test_attention_implementation_of_own_checkpoints(self, tmp_path, family):
        model = reward_model(family)
        model.save_pretrained(tmp_path)
        loaded = TokenRewardModel.from_pretrained(tmp_path, attn_implementation="eager")
        assert loaded.config._attn_implementation == loaded.model.config._attn_implementation == "eager"
        ids, mask = batch()
        torch.testing.assert_close(loaded(ids, mask).logits, model(ids, mask).logits, rtol=0, atol=1e-5)
        loaded.set_attn_implementation("sdpa")
        assert loaded.model.config._attn_implementation == "sdpa"


class TestTraining:
    def test_gradient_checkpointing_gives_the_same_gradients(self, family):
        plain = reward_model(
            family, **({"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0} if family == "gpt2" else {})
        )
        plain.train()
        checkpointed = deepcopy(plain)
        checkpointed.gradient_checkpointing_enable()
        layers = [module for module in checkpointed.model.modules() if hasattr(module, "_gradient_checkpointing_func")]
        assert len(layers) >= 2 and all(layer.gradient_checkpointing for layer in layers)

        calls = {plain: 0, checkpointed: 0}
        for model in calls:
            attention = next(
                module
                for name, module in model.model.named_modules()
                if name.endswith((".attn", "attention", "self_attn"))
            )
            attention.register_forward_hook(lambda *_, model=model: calls.__setitem__(model, calls[model] + 1))
            output = model(*batch())
            (output.logits.sum() + output.token_scores.square().sum()).backward()
        assert list(calls.values()) == [1, 2]  # computed again on the way back
        gradients = dict(checkpointed.named_parameters())
        for name, parameter in plain.named_parameters():
            torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-4, atol=1e-6)

        checkpointed.gradient_checkpointing_disable()
        assert not any(layer.gradient_checkpointing for layer in layers)

    def test_embeddings_can_be_replaced(self, family):
        model = reward_model(family)
        model.resize_token_embeddings(310)
        assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == 310
        embeddings = torch.nn.Embedding(310, 16)
        model.set_input_embeddings(embeddings)
        assert model.get_input_embeddings() is embeddings
        assert any(module is embeddings for module in model.model.modules())

    def test_layers_that_must_not_be_split_are_the_backbones(self, family):
        model = reward_model(family)
        assert model._no_split_modules and set(model._no_split_modules) == set(model.model._no_split_modules)


LORA_TARGETS = {
    "llama": ["q_proj", "v_proj"],
    "qwen2": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "gpt_neox": ["query_key_value"],
}


class TestPeft:
    @pytest.mark.parametrize("task_type", [None, "SEQ_CLS", "TOKEN_CLS"])
    def test_trains_saves_and_loads(self, tmp_path, family, task_type):
        base = TokenRewardModel.from_backbone(tiny.causal_lm(family)).eval()
        base.save_pretrained(tmp_path / "base")
        adapter = LoraConfig(
            target_modules=LORA_TARGETS[family],
            modules_to_save=["score", "token_score"],
            task_type=task_type,
            init_lora_weights=False,
        )
        model = get_peft_model(base, adapter).eval()
        assert model.get_base_model().token_head_is_trained is False
        ids, mask = batch()
        optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
        output = model(input_ids=ids, attention_mask=mask)
        (output.logits.sum() + output.token_scores.sum()).backward()
        optimizer.step()
        assert model.get_base_model().token_head_is_trained is True
        expected = model(input_ids=ids, attention_mask=mask)
        assert (expected.token_scores != 0).all()

        model.save_pretrained(tmp_path / "adapter")
        loaded = PeftModel.from_pretrained(TokenRewardModel.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
        merged = deepcopy(model).merge_and_unload()
        assert type(merged) is TokenRewardModel
        for other in (loaded.eval(), merged):
            output = other(input_ids=ids, attention_mask=mask)
            assert_same(output.token_scores, expected.token_scores)
            assert_same(output.logits, expected.logits)

    def test_heads_are_no_targets_of_all_linear(self, family):
        adapter = LoraConfig(target_modules="all-linear", modules_to_save=["score", "token_score"])
        model = get_peft_model(reward_model(family), adapter)
        adapted = [name for name, _ in model.named_parameters() if "lora" in name]
        assert adapted and not any("score" in name for name in adapted)

    def test_gradient_checkpointing(self):
        adapter = LoraConfig(target_modules=["q_proj"], modules_to_save=["score", "token_score"], task_type="SEQ_CLS")
        model = get_peft_model(reward_model(), adapter).train()
        model.gradient_checkpointing_enable()
        model(input_ids=batch()[0], attention_mask=batch()[1]).token_scores.sum().backward()
        adapted = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
        assert adapted and all(torch.count_nonzero(parameter.grad) for parameter in adapted)

    def test_score_texts(self):
        adapter = LoraConfig(
            target_modules=["q_proj"], modules_to_save=["score", "token_score"], init_lora_weights=False
        )
        base = reward_model()
        plain = base.score_texts(["how do I bake bread?"], tiny.tokenizer())
        adapted = get_peft_model(base, adapter).score_texts(["how do I bake bread?"], tiny.tokenizer())
        assert plain[0].tokens == adapted[0].tokens
        assert plain[0].score != adapted[0].score


class TestQuantization:
    @pytest.mark.parametrize("make", [tiny.causal_lm, tiny.sequence_classifier, reward_model])
    def test_backbone_is_quantized_and_the_heads_are_not(self, tmp_path, make):
        bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
        make("llama").save_pretrained(tmp_path / "plain")
        quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
        model = TokenRewardModel.from_pretrained(tmp_path / "plain", quantization_config=quantization)
        assert model.is_quantized and model.is_loaded_in_4bit
        assert isinstance(model.model.layers[0].mlp.up_proj, bitsandbytes.nn.Linear4bit)
        assert type(model.score) is type(model.token_score) is type(reward_model().score)
        with pytest.raises(ValueError, match="is quantized"):
            model.export_token_classification(tmp_path / "export")
        model.save_pretrained(tmp_path / "quantized")
        loaded = TokenRewardModel.from_pretrained(tmp_path / "quantized")
        assert_same(loaded(*batch()).logits, model(*batch()).logits)


class TestTRL:
    def test_get_reward(self, family):
        utils = pytest.importorskip("trl.experimental.utils")
        if not hasattr(utils, "get_reward"):
            pytest.skip("this TRL has no get_reward")
        model = reward_model(family)
        # A prompt of 3 tokens, padded on the left, and completions of 4, padded on the right.
        query_responses = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [0, 0, 12, 13, 14, 0, 0]])
        mask = query_responses != 0
        logits, scores, lengths = utils.get_reward(model, query_responses, pad_token_id=0, context_length=3)
        expected = model(query_responses, mask)
        assert lengths.tolist() == [6, 4]
        assert_same(scores, expected.logits.squeeze(1))
        assert_same(logits.squeeze(-1)[mask], expected.prefix_scores[mask])

    def test_reward_trainer_takes_it_as_it_takes_a_sequence_classifier(self, tmp_path):
        from datasets import Dataset
        from trl import RewardConfig, RewardTrainer

        dataset = Dataset.from_dict(
            {"chosen": ["no thanks", "good food"] * 4, "rejected": ["lousy", "aren't good"] * 4}
        )
        arguments = RewardConfig(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=4,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            learning_rate=0.01,
            use_cpu=True,
            bf16=False,
        )
        logs = []
        classifier = tiny.sequence_classifier()
        classifier.model.load_state_dict(tiny.causal_lm().model.state_dict())
        for model in (TokenRewardModel.from_backbone(classifier), classifier):
            trainer = RewardTrainer(model, arguments, train_dataset=dataset, processing_class=tiny.tokenizer())
            trainer.train()
            logs.append(trainer.state.log_history)
            assert trainer.model.config.get_text_config().pad_token_id == 0
        for ours, theirs in zip(*logs, strict=True):
            for name in {"loss", "grad_norm", "mean_reward", "margin", "train_loss"} & set(theirs):
                assert ours[name] == pytest.approx(theirs[name], abs=1e-5), name
        assert [entry["loss"] for entry in logs[0][:2]] != [0.0, 0.0]


class TestScoreTexts:
    def test_scores_are_the_models(self, family):
        model, tokenizer = reward_model(family), tiny.tokenizer()
        texts = ["how do I bake bread?", "the lazy dog", "thanks"]
        results = model.score_texts(texts, tokenizer, batch_size=2)
        assert [result.text for result in results] == texts
        for text, result in zip(texts, results, strict=True):
            ids = tokenizer(text + "<eos>", return_tensors="pt").input_ids
            output = model(ids)
            assert result.tokens == tokenizer.convert_ids_to_tokens(ids[0])[:-1]
            assert result.token_scores == pytest.approx(output.token_scores[0, :-1].tolist(), abs=1e-5)
            assert result.score == pytest.approx(output.logits.item(), abs=1e-5)
            assert len(result.spans) == len(result.tokens)

    def test_spans_of_bytes_and_words(self):
        model, tokenizer = reward_model(), tiny.tokenizer("bpe")
        (result,) = model.score_texts(["the fox 🦊"], tokenizer)
        # There is no token of the animal's picture. Each of its four bytes has one, with the span of the whole
        # character.
        assert "".join(result.text[start:end] for start, end in result.spans[:-4]) == "the fox "
        assert result.spans[-4:] == [(8, 9)] * 4
        (result,) = model.score_texts(["no thanks"], tiny.tokenizer("wordpiece"))
        assert [result.text[start:end] for start, end in result.spans] == ["no", "thanks"]

    def test_prompts(self):
        model, tokenizer = reward_model(), tiny.tokenizer()
        prompts = ["Human: how do I bake bread?\n\nAssistant:", "Human: the dog?\n\nAssistant:"]
        texts = [" mix the flour", " wait"]
        results = model.score_texts(texts, tokenizer, prompts=prompts)
        for prompt, text, result in zip(prompts, texts, results, strict=True):
            assert result.text == text
            assert "".join(text[start:end] for start, end in result.spans) == text
            (whole,) = model.score_texts([prompt + text], tokenizer)
            assert result.score == pytest.approx(whole.score, abs=1e-5)
            assert result.token_scores == pytest.approx(whole.token_scores[-len(result.tokens) :], abs=1e-5)
            assert result.tokens == whole.tokens[-len(result.tokens) :]

    def test_token_across_the_border_is_the_texts(self):
        model, tokenizer = reward_model(), tiny.tokenizer()
        assert tokenizer.tokenize("mix the")[-1] == "Ġthe"
        (result,) = model.score_texts(["he"], tokenizer, prompts=["mix t"])
        assert (result.tokens, result.spans) == (["Ġthe"], [(0, 2)])

    def test_eos_is_read_and_not_listed(self):
        model, tokenizer = reward_model(), tiny.tokenizer()
        with_eos, without = (model.score_texts(["the dog"], tokenizer, append_eos=flag)[0] for flag in (True, False))
        ids = tokenizer("the dog", return_tensors="pt").input_ids
        assert without.score == pytest.approx(model(ids).logits.item(), abs=1e-5)
        ids = torch.cat([ids, torch.tensor([[1]])], dim=1)
        assert with_eos.score == pytest.approx(model(ids).logits.item(), abs=1e-5)
        assert with_eos.tokens == without.tokens
        assert with_eos.token_scores == pytest.approx(without.token_scores, abs=1e-5)
        # A text that brings its own is not given another.
        (own,) = model.score_texts(["the dog<eos>"], tokenizer)
        assert own.tokens == [*with_eos.tokens, "<eos>"]
        assert own.score == pytest.approx(with_eos.score, abs=1e-5)
        tokenizer.eos_token = None
        assert model.score_texts(["the dog"], tokenizer)[0].score == pytest.approx(without.score, abs=1e-5)

    def test_bos_is_read_and_not_listed(self):
        model, tokenizer = reward_model(), tiny.tokenizer()
        template = processors.TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 2)])
        tokenizer.backend_tokenizer.post_processor = template
        (result,) = model.score_texts(["the dog"], tokenizer, append_eos=False)
        ids = tokenizer("the dog", return_tensors="pt").input_ids
        assert ids[0, 0] == 2
        assert result.token_scores == pytest.approx(model(ids).token_scores[0, 1:].tolist(), abs=1e-5)
        assert "".join(result.text[start:end] for start, end in result.spans) == "the dog"

    def test_white_space_that_a_tokenizer_trims_off_its_spans(self):
        model, tokenizer = reward_model(), tiny.tokenizer()
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
        assert tokenizer("dog  ", return_offsets_mapping=True).offset_mapping[-2:] == [(4, 4), (5, 5)]
        (result,) = model.score_texts(["  "], tokenizer, prompts=["dog"])
        assert (result.tokens, result.spans) == (["Ġ", "Ġ"], [(0, 1), (1, 2)])

    def test_padding_and_batches_do_not_matter(self, family):
        model, tokenizer = reward_model(family), tiny.tokenizer()
        texts = [text for text in tiny.CORPUS if len(tokenizer(text).input_ids) < 100]
        together = model.score_texts(texts, tokenizer, batch_size=len(texts))
        alone = model.score_texts(texts, tokenizer, batch_size=1)
        for one, other in zip(together, alone, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-5)
            assert one.token_scores == pytest.approx(other.token_scores, abs=1e-5)
            assert one.spans == other.spans

    def test_no_texts(self):
        assert reward_model().score_texts([], tiny.tokenizer()) == []

    def test_empty_text_has_a_score_and_no_tokens(self):
        model, tokenizer = reward_model(), tiny.tokenizer()
        (result,) = model.score_texts([""], tokenizer)
        assert result[2:] == ([], [], [])
        assert result.score == pytest.approx(model(torch.tensor([[1]])).logits.item(), abs=1e-5)
        with pytest.raises(ValueError, match="Text 1 has no tokens"):
            model.score_texts(["a", ""], tokenizer, append_eos=False)

    def test_nothing_is_truncated(self):
        model, tokenizer = reward_model(), tiny.tokenizer()
        texts = ["the dog", "1 2 3 4 5 6 7 8 9 10 11 12"]
        tokenizer.model_max_length = 4
        tokenizer.truncation_side = "left"
        assert len(model.score_texts(texts, tokenizer)[1].tokens) > 10
        with pytest.raises(ValueError, match=r"Text 1 has \d+ tokens, more than 8"):
            model.score_texts(texts, tokenizer, max_length=8)
        with pytest.raises(ValueError, match=r"Text 0 has 129 tokens, more than 128"):
            model.score_texts(["<unk>" * 128], tokenizer)
        assert len(model.score_texts(["<unk>" * 127], tokenizer)[0].tokens) == 127

    def test_modes_are_restored(self):
        model, tokenizer = reward_model(), tiny.tokenizer()
        model.train()
        model.model.eval()
        model.score_texts(["the dog"], tokenizer)
        assert model.training and model.score.training and not model.model.training
        model.train()
        with pytest.raises(RuntimeError, match="out of"):
            model.model.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
            model.score_texts(["the dog"], tokenizer)
        assert all(module.training for module in model.modules())

    def test_dropout_is_off(self):
        model = reward_model("gpt2").train()
        first, second = (model.score_texts(["the dog"], tiny.tokenizer()) for _ in range(2))
        assert first == second

    @pytest.mark.parametrize(
        ("texts", "arguments", "error", "message"),
        [
            ("the dog", {}, TypeError, "`texts` must be a sequence of strings"),
            (["a", None], {}, TypeError, "`texts` must hold strings, but number 1 is a NoneType"),
            (["a", "b"], {"prompts": "cd"}, TypeError, "`prompts` must be a sequence of strings"),
            (["a", "b"], {"prompts": ["c"]}, ValueError, "2 texts, but 1 prompts"),
            (["a"], {"batch_size": 0}, ValueError, "`batch_size` must be at least 1, got 0"),
        ],
    )
    def test_bad_arguments(self, texts, arguments, error, message):
        with pytest.raises(error, match=message):
            reward_model().score_texts(texts, tiny.tokenizer(), **arguments)

    def test_slow_tokenizers(self):
        with pytest.raises(ValueError, match="ByT5Tokenizer does not tell"):
            reward_model().score_texts(["a"], ByT5Tokenizer())


class TestExport:
    def test_token_classification(self, tmp_path, family):
        model = reward_model(family)
        before = deepcopy(model.state_dict())
        model.export_token_classification(tmp_path)
        exported = AutoModelForTokenClassification.from_pretrained(tmp_path)
        assert type(exported).__module__.startswith("transformers.")
        ids, mask = batch()
        logits = exported(ids, attention_mask=mask).logits
        assert logits.shape == (3, 7, 1)
        assert_same(logits[..., 0][mask == 1], model(ids, mask).token_scores[mask == 1])
        assert not any(name.endswith(".bin") for name in os.listdir(tmp_path))
        # The model itself is what it was, and the way back leads to it.
        assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
        assert type(model.model.config) is type(exported.config) and model.model.config.num_labels != 1
        back = TokenRewardModel.from_pretrained(tmp_path)
        assert_same(back(ids, mask).token_scores, model(ids, mask).token_scores)

    def test_sequence_classification(self, tmp_path, family):
        model = reward_model(family)
        model.export_sequence_classification(tmp_path)
        exported = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert type(exported).__module__.startswith("transformers.")
        ids, mask = batch()
        assert_same(exported(ids, attention_mask=mask).logits, model(ids, mask).logits)

    def test_dtype_is_kept(self, tmp_path):
        reward_model().bfloat16().export_token_classification(tmp_path)
        assert AutoModelForTokenClassification.from_pretrained(tmp_path).dtype == torch.bfloat16

    def test_architectures_without_a_classifier(self, tmp_path):
        mamba = MambaModel(MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, vocab_size=300))
        model = TokenRewardModel.from_backbone(mamba)
        with pytest.raises(ValueError, match="no token classifier for `mamba`"):
            model.export_token_classification(tmp_path)
        with pytest.raises(ValueError, match="no sequence classifier for `mamba`"):
            model.export_sequence_classification(tmp_path)
        assert os.listdir(tmp_path) == []

    def test_adapters_must_be_merged_first(self, tmp_path):
        adapter = LoraConfig(target_modules=["q_proj"], modules_to_save=["score", "token_score"])
        model = get_peft_model(reward_model(), adapter)
        with pytest.raises(ValueError, match="merge_and_unload"):
            model.export_token_classification(tmp_path)
        assert os.listdir(tmp_path) == []
        model.merge_and_unload().export_token_classification(tmp_path)
        assert "model.safetensors" in os.listdir(tmp_path)


def test_causal_lm_is_left_with_its_head():
    """`copy=False` shares modules; the model that they came from still works."""
    causal_lm = tiny.causal_lm().eval()
    expected = causal_lm(batch()[0]).logits
    TokenRewardModel.from_backbone(causal_lm, copy=False)
    assert isinstance(causal_lm, LlamaForCausalLM)
    assert torch.equal(causal_lm(batch()[0]).logits, expected)
