"""Score texts: a part of the tests of modeling."""

import os
from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    ByT5Tokenizer,
    MambaConfig,
    MambaModel,
)

import tiny
from model_cases import assert_same, batch, reward_model
from trl_tokenreward import TokenRewardModel


pytestmark = pytest.mark.any_trl


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

    def test_special_tokens_that_the_text_has_are_not_added_again(self):
        tokenizer = deepcopy(tiny.tokenizer())
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<unk> $A <eos>", special_tokens=[("<unk>", 2), ("<eos>", 1)]
        )
        model, seen = reward_model(), []
        model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["input_ids"].tolist()), with_kwargs=True
        )
        for prompt in ("", "<unk>"):
            model.score_texts(["the dog"], tokenizer, prompts=[prompt])
            model.score_texts(["the dog"], tokenizer, prompts=[prompt], append_eos=False)
        ids = tokenizer("the dog", add_special_tokens=False)["input_ids"]
        assert seen == [[[2, *ids, 1]], [[2, *ids]]] * 2

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
            (["a", "go\ud83d"], {}, ValueError, "Number 1 of `texts` has half of a character"),
            (["a"], {"prompts": ["\ud83d"]}, ValueError, "Number 0 of `prompts` has half of a character"),
        ],
    )
    def test_bad_arguments(self, texts, arguments, error, message):
        with pytest.raises(error, match=message):
            reward_model().score_texts(texts, tiny.tokenizer(), **arguments)

    @pytest.mark.parametrize("tokenizer", [None, "a name"])
    def test_no_tokenizer(self, tokenizer):
        with pytest.raises(TypeError, match=f"`tokenizer` must be a tokenizer, but is {tokenizer!r}: load it with"):
            reward_model().score_texts(["a"], tokenizer)

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


def test_texts_that_the_model_cannot_read_are_named():
    model = TokenRewardModel.from_backbone(tiny.unigram_classifier({}), copy=False)
    with pytest.raises(ValueError, match="Row 1: the tokenizer gives the id 16, but `model` knows 16 tokens"):
        model.score_texts(["a", "a !"], tiny.word_tokenizer(words="abcdefghijkl.!"))
    with pytest.raises(ValueError, match="Row 0 has .* tokens, but `model` has 128 positions: shorten it"):
        model.score_texts(["a " * 200], tiny.word_tokenizer(), max_length=1000)
