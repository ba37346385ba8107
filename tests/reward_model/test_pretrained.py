"""A backbone that is trained as a language model first, then at the rates of fine-tuning: both heads learn."""

import logging

import pytest
import torch
from datasets import Dataset

import tiny
from demo_corpus import make_corpus
from trl_tokenreward import TokenRewardConfig, TokenRewardModel, TokenRewardTrainer
from trl_tokenreward.reward_model.metrics import LearningAlarm


pytestmark = [pytest.mark.any_trl, pytest.mark.slow]

RATE = 1e-5


@pytest.fixture(scope="module")
def tokenizer():
    texts = [row[side] for row in make_corpus(100, seed=1) for side in ("chosen", "rejected")]
    return tiny.tokenizer(vocab_size=600, corpus=texts)


@pytest.fixture(scope="module")
def language_model(tokenizer):
    """A small Llama that has learned to continue the corpus's dialogues, right and wrong ones."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "max_position_embeddings": 256}
    model = tiny.causal_lm("llama", vocab_size=len(tokenizer), **sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = make_corpus(1600, seed=2)
    texts = [row[side] for row in rows for side in ("chosen", "rejected")]
    for start in range(0, len(texts), 32):
        batch = tokenizer(texts[start : start + 32], return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 2.5
    return model


def train(language_model, tokenizer, folder, **settings):
    trainer = TokenRewardTrainer(
        model=TokenRewardModel.from_backbone(language_model),
        args=TokenRewardConfig(
            str(folder),
            learning_rate=RATE,
            per_device_train_batch_size=16,
            num_train_epochs=1,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            **settings,
        ),
        train_dataset=Dataset.from_list(make_corpus(1280, seed=3)),
        eval_dataset=Dataset.from_list(make_corpus(128, seed=4)),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer.evaluate()


def test_both_heads_learn_at_the_rate_of_a_pretrained_backbone(language_model, tokenizer, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        metrics = train(language_model, tokenizer, tmp_path)
    assert metrics["eval_token_auroc"] > 0.71
    assert metrics["eval_accuracy"] > 0.75
    assert "do not learn" not in caplog.text
    # With heads at the backbone's rate and all losses of one weight, the token head finds less than half as much above
    # chance.
    even = {"head_learning_rate": RATE, "token_loss_weight": 1.0, "unchanged_token_weight": 1.0}
    metrics = train(language_model, tokenizer, tmp_path, **even)
    assert metrics["eval_token_auroc"] < 0.62


def test_heads_that_do_not_learn_are_reported_once(language_model, tokenizer, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train(language_model, tokenizer, tmp_path, head_learning_rate=0.0)
    assert caplog.text.count("The token scores do not learn: after a tenth of the steps") == 1
    assert "Raise `head_learning_rate`" in caplog.text


@pytest.mark.parametrize(
    ("aurocs", "expected"),
    [
        ([0.5] * 20, [0.5]),  # steps 6 to 9 of 100 count, and step 10 tells
        ([0.9] * 6 + [0.55] * 4 + [0.9] * 10, [0.55]),
        ([0.5] * 6 + [0.61] * 4 + [0.5] * 10, []),
        ([0.5] * 6 + [float("nan")] * 4 + [0.5] * 10, []),
    ],
)
def test_the_alarm_looks_at_the_steps_before_a_tenth(aurocs, expected):
    alarm = LearningAlarm(num_steps=100)
    told = [alarm.add(step, auroc, rows=8) for step, auroc in enumerate(aurocs)]
    assert [mean for mean in told if mean is not None] == pytest.approx(expected)


def test_the_alarm_needs_enough_rows():
    alarm = LearningAlarm(num_steps=20)
    assert [alarm.add(step, 0.5, rows=8) for step in range(20)] == [None] * 20
