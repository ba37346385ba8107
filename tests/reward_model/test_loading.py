"""Loading: a part of the tests of modeling."""

import json
import os
from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import tiny
from model_cases import assert_same, batch, reward_model
from trl_tokenreward import TokenRewardModel, TokenRewardModelConfig


pytestmark = pytest.mark.any_trl


def token_classifier(family: str, seed: int = 2, **kwargs):
    torch.manual_seed(seed)
    model = AutoModelForTokenClassification.from_config(tiny.config(family, num_labels=1, **kwargs))
    head = model.classifier if hasattr(model, "classifier") else model.score
    torch.nn.init.constant_(head.bias, 0.5)
    return model.eval()


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

    def test_adapters_of_other_models(self, tmp_path):
        model = get_peft_model(reward_model(), LoraConfig(target_modules=["q_proj"], modules_to_save=["score"]))
        model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="holds a PEFT adapter without the head of token scores"):
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
