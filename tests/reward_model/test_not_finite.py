"""A NaN in a reward model ends a training, an evaluation or a scoring at once, with the name of where it is."""

import math

import pytest
import torch
from datasets import Dataset

import tiny
from reward_trainer_cases import ROWS
from tiny import causal_lm
from trl_tokenreward import TokenRewardModel


def with_nan(model):
    model.get_input_embeddings().weight.data[:, 0] = math.nan
    return model


class TestTraining:
    def test_embeddings(self, make_trainer, tmp_path):
        trainer = make_trainer(with_nan(causal_lm()), save_strategy="steps", save_steps=1)
        with pytest.raises(ValueError, match="^Optimizer step 0, batch, row 0: a token score of `model` is nan"):
            trainer.train()
        assert not list(tmp_path.glob("**/*.safetensors"))

    def test_the_sequence_head_alone(self, make_trainer):
        trainer = make_trainer()
        trainer.model.score.weight.data[0, 0] = math.inf
        with pytest.raises(ValueError, match="^Optimizer step 0, batch, row [0-3]: a sequence score of `model` is"):
            trainer.train()

    def test_an_evaluation(self, make_trainer):
        trainer = make_trainer(with_nan(causal_lm()), eval_dataset=Dataset.from_list(ROWS))
        with pytest.raises(ValueError, match="^Evaluation, batch, row 0: a token score of `model` is nan"):
            trainer.evaluate()

    @pytest.mark.parametrize("save", ["no", "steps"])
    def test_weights(self, make_trainer, tmp_path, save):
        """A gradient of the last step that is NaN although its loss is not."""
        trainer = make_trainer(max_steps=1, save_strategy=save, save_steps=1)
        trainer.model.token_score.weight.register_hook(lambda gradient: gradient * math.nan)
        with pytest.raises(ValueError, match=r"^After optimizer step 1: the weight \S+ has NaN"):
            trainer.train()
        with pytest.raises(ValueError, match="has NaN"):
            trainer.save_model(str(tmp_path / "final"))
        assert not list(tmp_path.glob("**/*.safetensors"))


def test_masked_columns_do_not_count(make_trainer):
    """Prompts' tokens and padding have no score that anyone looks at."""
    trainer = make_trainer(max_steps=1)
    forward = trainer.model.forward

    def with_junk(input_ids, attention_mask, **kwargs):
        output = forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        output.token_scores = torch.where(attention_mask.bool(), output.token_scores, math.nan)
        return output

    trainer.model.forward = with_junk
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_score_texts():
    model = with_nan(TokenRewardModel.from_backbone(causal_lm()))
    with pytest.raises(ValueError, match="^Scores of `model`, row 0: a sequence score is nan, not a finite number"):
        model.score_texts(["a b", "b"], tiny.tokenizer())
