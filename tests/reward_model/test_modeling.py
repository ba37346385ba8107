"""The token reward model, on four families of backbones."""

from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    CLIPVisionConfig,
    Llama4TextConfig,
    LlamaForCausalLM,
    LlavaConfig,
    MambaConfig,
    MambaModel,
    OPTConfig,
    OPTModel,
    T5Config,
)

import tiny
from model_cases import LORA_TARGETS, assert_same, batch, reward_model
from trl_tokenreward import TokenRewardModel, TokenRewardModelConfig


pytestmark = pytest.mark.any_trl


BACKBONE_PREFIX = {"llama": "model", "qwen2": "model", "gpt2": "transformer", "gpt_neox": "gpt_neox"}


def flipped(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Right-padded rows, left-padded."""
    rows = zip(mask.sum(1).tolist(), values, strict=True)
    return torch.stack([row.roll(len(row) - length) for length, row in rows])


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

    @pytest.mark.parametrize("auto_class", [AutoModelForCausalLM, AutoModelForSequenceClassification])
    def test_states_of_another_size_than_the_layers(self, auto_class, tmp_path):
        """As in OPT-350m, the reward model of TRL's examples."""
        sizes = {"hidden_size": 16, "word_embed_proj_dim": 8, "ffn_dim": 16, "vocab_size": 300, "num_labels": 1}
        layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "do_layer_norm_before": False}
        base = auto_class.from_config(OPTConfig(**sizes, **layers)).eval()
        model = TokenRewardModel.from_backbone(base)
        assert model.score.weight.shape == model.token_score.weight.shape == (1, 8)
        ids, mask = batch()
        if auto_class is AutoModelForSequenceClassification:
            assert_same(model(ids[:1]).logits, base(ids[:1]).logits)
        model.save_pretrained(tmp_path)
        assert_same(TokenRewardModel.from_pretrained(tmp_path)(ids, mask).logits, model(ids, mask).logits)

    def test_a_backbone_under_another_name_than_the_model_says(self):
        sizes = {"hidden_size": 16, "intermediate_size": 16, "intermediate_size_mlp": 16, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "num_local_experts": 2}
        policy = AutoModelForCausalLM.from_config(Llama4TextConfig(vocab_size=300, pad_token_id=0, **sizes, **heads))
        assert policy.base_model is policy
        model = TokenRewardModel.from_backbone(policy, copy=False)
        assert model.model is policy.model
        ids, mask = batch()
        states = policy.model(input_ids=ids, attention_mask=mask).last_hidden_state
        assert_same(model(ids, mask).prefix_scores, model.score(states).squeeze(-1))


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


def test_causal_lm_is_left_with_its_head():
    """`copy=False` shares modules; the model that they came from still works."""
    causal_lm = tiny.causal_lm().eval()
    expected = causal_lm(batch()[0]).logits
    TokenRewardModel.from_backbone(causal_lm, copy=False)
    assert isinstance(causal_lm, LlamaForCausalLM)
    assert torch.equal(causal_lm(batch()[0]).logits, expected)
