"""Trainer data: a part of the tests of trainer."""

import copy
import logging
import random
import re

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import AutoConfig, AutoModelForSequenceClassification

from reward_trainer_cases import ROWS, training_logs
from tiny import causal_lm, sequence_classifier
from tiny import tokenizer as make_tokenizer
from trl_tokenreward import TokenRewardConfig, TokenRewardModel
from trl_tokenreward.data.collator import DataCollatorForTokenReward
from trl_tokenreward.data.formats import SIDES


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def lora_shapes(model):
    return {name: tuple(p.shape) for name, p in model.named_parameters() if "lora_" in name}


def stream(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


IDENTICAL = {**ROWS[0], "rejected": ROWS[0]["chosen"]}


LONG = {**ROWS[0], "chosen": " terrific" * 40}


OTHER = {**ROWS[0], "chosen": " no", "rejected": " the lazy dog"}


class TestDataSets:
    def test_what_is_dropped_is_reported(self, make_trainer, caplog):
        rows = Dataset.from_list([*ROWS[:8], IDENTICAL, LONG, OTHER, OTHER])
        with caplog.at_level(logging.WARNING):
            trainer = make_trainer(train_dataset=rows, max_length=100, max_edit_ratio=0.7)
        counts = {"rows": 12, "kept": 8, "identical": 1, "too_long": 1, "not_minimal": 2}
        assert trainer.dropped == {"train": counts} and len(trainer.train_dataset) == 8
        assert "Data set train: 8 of 12 rows are kept (1 identical, 1 too_long, 2 not_minimal)." in caplog.text

    def test_nothing_is_reported_where_nothing_is_dropped(self, make_trainer, caplog):
        with caplog.at_level(logging.WARNING):
            make_trainer()
        assert "rows are kept" not in caplog.text

    def test_a_tokenizer_that_is_not_the_models(self, make_trainer, caplog):
        make_trainer(model=causal_lm(vocab_size=320))  # padded: the tokenizer has 300
        assert "belong together" not in caplog.text
        make_trainer(model=causal_lm(vocab_size=3001))
        warning = "The tokenizer has 300 tokens and `model` 3001 embeddings, so they do not belong together"
        assert caplog.text.count(warning) == 1

    @pytest.mark.parametrize("kind", [Dataset.from_list, stream])
    def test_rows_that_the_model_has_no_positions_for(self, make_trainer, kind):
        model = TokenRewardModel.from_backbone(causal_lm(max_position_embeddings=40))
        with pytest.raises(ValueError, match="Row 2 of the prepared train .* 40 positions: set `max_length=40`"):
            trainer = make_trainer(model=model, train_dataset=kind([*ROWS[:2], LONG]), max_length=None, max_steps=1)
            list(trainer.train_dataset)

    def test_several_gpus_in_one_process(self, make_trainer, monkeypatch):
        monkeypatch.setattr(TokenRewardConfig, "n_gpu", 2)
        with pytest.raises(ValueError, match="GPUs are visible to this one process|does not support `nn.DataParallel`"):
            make_trainer()

    def test_nothing_left(self, make_trainer):
        with pytest.raises(ValueError, match="Nothing is left of the train data set.*raise `max_length`"):
            make_trainer(max_length=3)
        with pytest.raises(ValueError, match="Nothing is left of the eval data set.*raise `max_edit_ratio`"):
            make_trainer(eval_dataset=Dataset.from_list([OTHER]), max_edit_ratio=0.5)

    def test_a_malformed_row_is_named(self, make_trainer):
        with pytest.raises(ValueError, match="Row 3 of the train data set, column `rejected`: must be a text"):
            make_trainer(train_dataset=Dataset.from_list([*ROWS[:3], {**ROWS[0], "rejected": None}]))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_streaming(self, workers, make_trainer, caplog):
        rows = [*ROWS, IDENTICAL, LONG]
        trainer = make_trainer(
            train_dataset=Dataset.from_list(rows).to_iterable_dataset(num_shards=2),
            eval_dataset=stream([*ROWS[:4], OTHER]),
            eval_strategy="steps",
            eval_steps=7,
            max_steps=7,
            max_length=100,
            max_edit_ratio=0.7,
            dataloader_num_workers=workers,
        )
        assert trainer.dropped["train"]["rows"] == 0
        with caplog.at_level(logging.WARNING):
            trainer.train()
        counts = trainer.dropped["train"]
        # at least one whole pass of 21 kept pairs went into the 7 batches of 4
        assert counts["kept"] >= 21 and counts["identical"] >= 1 and counts["too_long"] >= 1
        last = training_logs(trainer)[-1]
        assert last["dropped/identical"] >= 1 and last["dropped/not_minimal"] == 0
        evaluation = next(log for log in trainer.state.log_history if "eval_loss" in log)
        assert evaluation["eval_dropped/not_minimal"] >= 1 and "eval_token_auroc" in evaluation
        assert re.search(
            r"Data set train: \d+ of \d+ rows are kept \([1-9]\d* identical, [1-9]\d* too_long", caplog.text
        )

    def test_a_stream_trains_as_its_table_does(self, make_trainer):
        runs = []
        for dataset in (Dataset.from_list(ROWS), Dataset.from_list(ROWS).to_iterable_dataset()):
            trainer = make_trainer(train_dataset=dataset, max_steps=4, train_sampling_strategy="sequential")
            trainer.train()
            runs.append([log["loss"] for log in training_logs(trainer)])
        assert runs[0] == runs[1]

    def test_a_stream_of_which_nothing_is_left(self, make_trainer):
        trainer = make_trainer(train_dataset=stream(ROWS), max_length=3)
        with pytest.raises(ValueError, match=r"Nothing is left of the train data set: 0 of 21 rows.*21 too_long"):
            trainer.train()
        trainer = make_trainer(eval_dataset=stream([OTHER]), max_edit_ratio=0.5)
        with pytest.raises(ValueError, match="Nothing is left of the eval data set: 0 of 1 rows"):
            trainer.evaluate()

    def test_columns_that_are_not_removed_do_no_harm(self, make_trainer):
        rows = Dataset.from_list([{**row, "source": "web"} for row in ROWS])
        trainer = make_trainer(train_dataset=rows, remove_unused_columns=False)
        trainer.train()
        assert trainer.train_dataset["source"][0] == "web" and len(training_logs(trainer)) == 2

    def test_the_collator_pads_with_the_pad_token_of_the_trainer(self, make_trainer, tokenizer):
        trainer = make_trainer(pad_to_multiple_of=16)
        assert trainer.data_collator == DataCollatorForTokenReward(tokenizer.pad_token_id, pad_to_multiple_of=16)

    def test_a_collator_of_ones_own(self, make_trainer, tokenizer):
        collator = DataCollatorForTokenReward(tokenizer.eos_token_id)
        trainer = make_trainer(data_collator=collator)
        trainer.train()
        assert trainer.data_collator is collator


class TestCheckpoints:
    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.slow
    def test_resuming_is_exact(self, streaming, make_trainer, tmp_path):
        def make(**kwargs):
            dataset = Dataset.from_list(ROWS)
            return make_trainer(
                train_dataset=dataset.to_iterable_dataset() if streaming else dataset,
                save_strategy="steps",
                save_steps=3,
                max_steps=7,
                gradient_accumulation_steps=2,
                **kwargs,
            )

        whole = make(output_dir=str(tmp_path / "whole"))
        whole.train()
        resumed = make(model=causal_lm(seed=5), output_dir=str(tmp_path / "resumed"))
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
        assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())
        ours, theirs = ({log["step"]: log for log in training_logs(trainer)} for trainer in (resumed, whole))
        assert list(theirs) == list(ours) == [1, 2, 3, 4, 5, 6, 7]
        for step in theirs:
            skipped = {"num_tokens", *(key for key in theirs[step] if key.startswith("dropped/"))}
            assert {k: v for k, v in ours[step].items() if k not in skipped} == {
                k: v for k, v in theirs[step].items() if k not in skipped
            }

    def test_a_saved_model_scores_as_before(self, make_trainer, tmp_path):
        trainer = make_trainer(max_steps=4)
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
        model = TokenRewardModel.from_pretrained(tmp_path / "saved")
        ids = torch.tensor([[5, 6, 7, 8]])
        expected = trainer.model.eval()(input_ids=ids)
        assert torch.equal(model(input_ids=ids).token_scores, expected.token_scores)
        assert torch.equal(model(input_ids=ids).logits, expected.logits)
        assert model.token_head_is_trained

    @pytest.mark.parametrize("lora", [False, True])
    def test_the_model_card(self, lora, make_trainer, tmp_path, capsys):
        extra = {"peft_config": pytest.importorskip("peft").LoraConfig(target_modules="all-linear")} if lora else {}
        causal_lm().save_pretrained(tmp_path / "lm")
        trainer = make_trainer(str(tmp_path / "lm"), save_strategy="steps", save_steps=2, **extra)
        trainer.train()
        card = (tmp_path / "out" / "README.md").read_text("utf-8")
        assert "Aligning Large Language Models via Fine-grained Supervision" in card
        assert "@inproceedings{xu2024aligning," in card and "huggingface.co/papers/2406.02756" in card
        assert "Token Reward" in card and "- token-reward-trainer" in card and "pipeline(" not in card
        trainer.model.set_adapter("default") if lora else None
        trainer.save_model()
        # The example on the card runs, and says what the trained model says.
        [example] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        namespace = {}
        exec(example.replace('"out"', repr(str(tmp_path / "out"))), namespace)
        scores = trainer.model.score_texts([" Paris."], trainer.processing_class, ["The capital of France is"])[0]
        assert namespace["scores"].token_scores == pytest.approx(scores.token_scores, abs=1e-6)
        assert str(scores.score)[:5] in capsys.readouterr().out


class TestPeft:
    @pytest.fixture
    def peft(self):
        return pytest.importorskip("peft")

    @pytest.mark.parametrize("task_type", [None, "SEQ_CLS", "TOKEN_CLS", "CAUSAL_LM"])
    @pytest.mark.parametrize("target_modules", [None, ["q_proj", "v_proj"], "all-linear"])
    def test_adapter_and_heads_are_trained(self, task_type, target_modules, peft, make_trainer, tmp_path, caplog):
        config = peft.LoraConfig(r=4, target_modules=target_modules, task_type=task_type)
        before = copy.deepcopy(config.to_dict())
        backbone = causal_lm()
        with caplog.at_level(logging.WARNING):
            trainer = make_trainer(TokenRewardModel.from_backbone(backbone), peft_config=config, max_steps=4)
        assert config.to_dict() == before
        assert "Added the heads ['score', 'token_score'] to PEFT's `modules_to_save`" in caplog.text
        trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
        assert all("lora_" in name or "modules_to_save" in name for name in trained)
        assert {"score", "token_score"} <= {part for name in trained for part in name.split(".")}
        start = weights(trainer)
        trainer.train()
        end = weights(trainer)
        changed = {name for name in start if not torch.equal(start[name], end[name])}
        assert changed <= trained and {n for n in trained if "modules_to_save" in n} <= changed
        assert any("lora_B" in name for name in changed)

        trainer.save_model(str(tmp_path / "adapter"))
        loaded = peft.PeftModel.from_pretrained(TokenRewardModel.from_backbone(backbone), tmp_path / "adapter")
        ids = torch.tensor([[5, 6, 7, 8]])
        expected, outputs = trainer.model.eval()(input_ids=ids), loaded(input_ids=ids)
        assert torch.allclose(outputs.token_scores, expected.token_scores, atol=1e-6)
        assert torch.allclose(outputs.logits, expected.logits, atol=1e-6)
        assert expected.token_scores.any()

    def test_heads_that_are_named_already_are_not_repeated(self, peft, make_trainer, caplog):
        config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["score", "token_score", "embed_tokens"])
        with caplog.at_level(logging.WARNING):
            trainer = make_trainer(peft_config=config)
        assert "Added the heads" not in caplog.text
        assert set(trainer.model.peft_config["default"].modules_to_save) == {"score", "token_score", "embed_tokens"}

    def test_a_peft_model(self, peft, make_trainer):
        config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["score", "token_score"])
        model = peft.get_peft_model(TokenRewardModel.from_backbone(causal_lm()), config)
        trainer = make_trainer(model)
        trainer.train()
        assert trainer.model is model and model.get_base_model().token_score.modules_to_save["default"].weight.any()

    @pytest.mark.parametrize("head", ["causal", "classifier"])
    @pytest.mark.parametrize(("family", "layer"), [("llama", "q_proj"), ("gpt2", "c_attn")])
    def test_a_peft_model_around_another_model(self, family, layer, head, peft, make_trainer, tmp_path):
        """Its adapter goes on training, and the two heads learn with it."""
        make = causal_lm if head == "causal" else sequence_classifier
        task_type = "SEQ_CLS" if head == "classifier" else "CAUSAL_LM"
        config = peft.LoraConfig(target_modules=[layer], init_lora_weights=False, task_type=task_type)
        model = peft.get_peft_model(make(family), config)
        for name, parameter in model.named_parameters():
            parameter.data += 0.1 * ("modules_to_save" in name)  # a head that was trained
        ids = torch.tensor([[5, 6, 7, 8]])
        merged = TokenRewardModel.from_backbone(model).eval()
        trainer = make_trainer(model)
        moved = trainer.model.eval()
        states = moved.get_base_model().model(ids).last_hidden_state
        torch.testing.assert_close(states, merged.model(ids).last_hidden_state, rtol=0, atol=1e-5)
        if head == "classifier":
            torch.testing.assert_close(moved(ids).logits, merged(ids).logits, rtol=0, atol=1e-5)
        start = weights(trainer)
        trainer.train()
        changed = {name for name, weight in weights(trainer).items() if not torch.equal(weight, start[name])}
        assert changed and all("lora_" in name or "modules_to_save" in name for name in changed)
        assert {"score", "token_score"} <= {part for name in changed for part in name.split(".")}
        trainer.save_model(str(tmp_path / "adapter"))
        base = TokenRewardModel.from_backbone(make(family))
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        torch.testing.assert_close(loaded(ids).token_scores, moved.eval()(ids).token_scores, rtol=0, atol=1e-6)

    @pytest.mark.parametrize(
        "target_modules",
        [
            ["gate_proj", "up_proj", "down_proj"],
            ["q_proj", "gate_proj", "up_proj"],
            "all-linear",
            r".*layers\.0\..*_proj",
        ],
        ids=str,
    )
    def test_experts_get_the_adapters_that_they_get_in_other_models(self, target_modules, peft, make_trainer, tmp_path):
        sizes = {
            "vocab_size": 300,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_labels": 1,
        }
        experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "head_dim": 8}
        backbone = AutoConfig.for_model("qwen3_moe", num_key_value_heads=1, pad_token_id=0, **sizes, **experts)
        config = peft.LoraConfig(r=4, target_modules=target_modules, task_type="SEQ_CLS")
        classifier = AutoModelForSequenceClassification.from_config(backbone)
        expected = lora_shapes(peft.get_peft_model(classifier, copy.deepcopy(config)))
        assert any("experts" in name for name in expected)
        model = TokenRewardModel.from_backbone(AutoModelForSequenceClassification.from_config(backbone))
        base = copy.deepcopy(model)
        trainer = make_trainer(model, peft_config=config)
        assert lora_shapes(trainer.model) == expected
        trainer.train()
        trainer.save_model(str(tmp_path / "adapter"))
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        ids = torch.tensor([[5, 6, 7, 8]])
        outputs, expected = loaded(ids), trainer.model.eval()(ids)
        torch.testing.assert_close(outputs.token_scores, expected.token_scores, rtol=0, atol=1e-6)

    def test_what_is_refused(self, peft, make_trainer):
        frozen = peft.get_peft_model(
            TokenRewardModel.from_backbone(causal_lm()), peft.LoraConfig(target_modules=["q_proj"])
        )
        with pytest.raises(ValueError, match="The token head is untrained and frozen"):
            make_trainer(frozen)
        assert make_trainer(frozen, token_loss_weight=0)
        with pytest.raises(ValueError, match="a single adapter, loaded with `is_trainable=True`"):
            make_trainer(
                peft.get_peft_model(causal_lm(), peft.LoraConfig(target_modules=["q_proj"], inference_mode=True))
            )
        with pytest.raises(
            ValueError, match="changes 'lm_head.lora_A.weight', which a token reward model does not have"
        ):
            make_trainer(peft.get_peft_model(causal_lm(), peft.LoraConfig(target_modules=["q_proj", "lm_head"])))
        with pytest.raises(ValueError, match="TrainableTokensConfig trains no modules in full"):
            make_trainer(peft_config=peft.TrainableTokensConfig(token_indices=[5]))


COLOURS = {
    **{"sky": "blue", "grass": "green", "snow": "white", "coal": "black"},
    **{"blood": "red", "sun": "yellow", "mouse": "grey", "rose": "pink"},
}


FRAMES = [
    *("I think the {} is {} today", "so the {} was {} again", "they say the {} is {} here"),
    *("my {} looks {} to me", "the {} seems {} now", "that {} was {} before"),
]


class TestLearning:
    @pytest.mark.parametrize("target", ["right", "zero"])
    @pytest.mark.slow
    def test_wrong_words_are_found_where_only_their_context_tells_them(self, make_trainer, target):
        """Every colour is right for one noun and wrong for the others, so no word is wrong by itself."""
        pairs = [
            {"prompt": "Say:", "chosen": " " + frame.format(noun, right), "rejected": " " + frame.format(noun, wrong)}
            for frame in FRAMES
            for noun, right in COLOURS.items()
            for wrong in COLOURS.values()
            if wrong != right
        ]
        random.Random(0).shuffle(pairs)
        tokenizer = make_tokenizer("bpe", vocab_size=400, corpus=[pair[side] for pair in pairs for side in SIDES])
        trainer = make_trainer(
            causal_lm(vocab_size=400, hidden_size=32, intermediate_size=64, num_key_value_heads=2),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(pairs[84:]),
            eval_dataset=Dataset.from_list(pairs[:84]),
            per_device_train_batch_size=16,
            per_device_eval_batch_size=42,
            max_steps=300,
            warmup_steps=20,
            learning_rate=3e-3,
            gradient_checkpointing=False,
            unchanged_token_target=target,
        )
        before = trainer.evaluate()
        assert before["eval_token_auroc"] == 0.5 and 0.3 < before["eval_accuracy"] < 0.7
        trainer.train()
        after = trainer.evaluate()
        assert after["eval_accuracy"] >= 0.95
        assert after["eval_token_auroc"] >= 0.9
        assert after["eval_token_accuracy"] >= 0.95
        assert after["eval_token_score/edited_in"] > 1 > -1 > after["eval_token_score/edited_out"]
        if target == "right":
            assert after["eval_token_score/unchanged"] > 1
        else:
            assert abs(after["eval_token_score/unchanged"]) < 0.3
