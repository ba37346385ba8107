"""Training and evaluation on rows of one side: marked spans without a correction."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

import tiny
from trl_tokenreward import (
    TokenRewardConfig,
    TokenRewardModel,
    TokenRewardTrainer,
    TokenScorer,
    evaluate_token_rewards,
    score_dataset,
)
from trl_tokenreward.evaluation.judges import RewardModelJudge
from trl_tokenreward.ppo.completion_scorer import CompletionScorer
from trl_tokenreward.reward_model.character_scores import best_span_threshold, character_f1, marked_text


TEXT = " This movie was terrific."
COLUMNS = dict.fromkeys(["prompt", "chosen", "rejected", "completion", "completion_spans", "completion_judged"])
PAIR = {**COLUMNS, "prompt": "So?", "chosen": " This movie was good.", "rejected": " This movie was so lazy."}
ONE = {**COLUMNS, "prompt": "So?", "completion": TEXT, "completion_spans": [{"start": 5, "end": 11, "severity": 3.0}]}
RIGHT = {**COLUMNS, "completion": " I would watch it.", "completion_spans": []}
JUDGED = {
    **COLUMNS,
    "completion": TEXT,
    "completion_spans": [{"start": 16, "end": 24}],
    "completion_judged": [[11, 24]],
}
WRONG = {**ONE, "completion_spans": [{"start": 0, "end": 25}]}
MIXED = [ONE, PAIR, RIGHT, {**PAIR, "prompt": "a"}, JUDGED, WRONG]
ALONE = [{name: value for name, value in row.items() if name not in ("chosen", "rejected")} for row in MIXED[::2]]


def backbone():
    torch.manual_seed(0)
    model = TokenRewardModel.from_backbone(tiny.causal_lm())
    torch.nn.init.normal_(model.token_score.weight)
    return model


def make(rows, tmp_path, model=None, **settings):
    eval_rows = settings.pop("eval_rows", None)
    settings = {"per_device_train_batch_size": len(rows), "max_steps": 1, "learning_rate": 1e-3, **settings}
    return TokenRewardTrainer(
        backbone() if model is None else model,
        TokenRewardConfig(tmp_path, use_cpu=True, bf16=False, report_to="none", save_strategy="no", **settings),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=None if eval_rows is None else Dataset.from_list(eval_rows),
        processing_class=tiny.tokenizer(),
    )


def losses_by_hand(model, rows):
    """The parts of the loss, one row and one token at a time."""
    pairs, edited, unchanged = [], [], []
    data = make(rows, "unused", model).train_dataset
    for row in data:
        sides = {}
        for side in ("chosen", "rejected"):
            if row.get(f"{side}_ids") is None:
                continue
            output = model(input_ids=torch.tensor([row[f"{side}_ids"]]))
            sides[side] = output.logits[0, 0]
            weights = row["rejected_token_weights"] if side == "rejected" else None
            for i, score in enumerate(output.token_scores[0]):
                weight = 1.0 if weights is None else weights[i]
                if row[f"{side}_edit_mask"][i]:
                    edited.append((weight, -F.logsigmoid(score if side == "chosen" else -score)))
                elif row[f"{side}_completion_mask"][i]:
                    unchanged.append((weight, -F.logsigmoid(score)))
        if len(sides) == 2:
            pairs.append((1.0, -F.logsigmoid(sides["chosen"] - sides["rejected"])))
    return [sum(w * x for w, x in part) / max(sum(w for w, _ in part), 1e-9) for part in (pairs, edited, unchanged)]


class TestLoss:
    @pytest.mark.parametrize("batch_size", [6, 2, 1])
    def test_a_mixed_data_set_has_the_weighted_sum_of_its_parts(self, batch_size, tmp_path):
        settings = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": 6 // batch_size}
        trainer = make(MIXED, tmp_path, logging_steps=1, **settings)
        expected = [part.item() for part in losses_by_hand(trainer.model.eval(), MIXED)]
        trainer.train()
        log = trainer.state.log_history[0]
        assert [log[f"loss/{name}"] for name in ("sequence", "token", "unchanged")] == pytest.approx(expected, rel=1e-4)
        assert log["loss"] == pytest.approx(expected[0] + 2 * (expected[1] + 0.5 * expected[2]), rel=1e-3)

    def test_the_gradient_does_not_depend_on_the_batches(self, tmp_path):
        moved = []
        for size in (6, 2):
            trainer = make(
                MIXED, tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=6 // size, optim="sgd"
            )
            trainer.train()
            moved.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
        torch.testing.assert_close(*moved, rtol=0, atol=1e-6)

    def test_severity_moves_the_loss_towards_the_severe_span(self, tmp_path):
        def loss(severity):
            spans = [{"start": 5, "end": 11, "severity": severity}, {"start": 16, "end": 24, "severity": 1.0}]
            rows = [{**ALONE[0], "completion_spans": spans}]
            return make(rows, tmp_path).evaluate(make(rows, tmp_path).train_dataset)["eval_loss/token"]

        ends = loss(1e-6), loss(1e6)
        assert ends[0] != pytest.approx(ends[1], rel=0.01)
        assert min(ends) < loss(1.0) < max(ends)

    def test_rows_of_one_side_give_the_sequence_head_no_gradient(self, tmp_path):
        trainer = make(ALONE, tmp_path)
        batch = trainer.data_collator(list(trainer.train_dataset))
        trainer.compute_loss(trainer.model, batch).backward()
        assert not trainer.model.score.weight.grad.any()
        assert trainer.model.token_score.weight.grad.any()
        mixed = make(MIXED, tmp_path)
        mixed.compute_loss(mixed.model, mixed.data_collator(list(mixed.train_dataset))).backward()
        assert mixed.model.score.weight.grad.any()

    def test_ranking_takes_a_row_of_one_side_for_a_deletion(self, tmp_path):
        trainer = make(ALONE[:1], tmp_path, token_loss="ranking", logging_steps=1)
        [row] = trainer.train_dataset
        scores = trainer.model.eval()(input_ids=torch.tensor([row["rejected_ids"]])).token_scores[0]
        wrong = scores[torch.tensor(row["rejected_edit_mask"], dtype=torch.bool)]
        trainer.train()
        assert trainer.state.log_history[0]["loss/token"] == pytest.approx(F.softplus(wrong.mean()).item(), rel=1e-4)


class TestTraining:
    def test_a_new_sequence_head_that_nothing_trains_is_zero_and_refused(self, tmp_path, caplog):
        trainer = make(ALONE, tmp_path, logging_steps=1, eval_rows=ALONE)
        assert "the sequence head stays untrained" in caplog.text
        trainer.train()
        log = trainer.state.log_history[0]
        assert "accuracy" not in log and "loss/sequence" not in log and log["loss/token"] > 0
        metrics = trainer.evaluate()
        assert "eval_accuracy" not in metrics and metrics["eval_token_auroc"] >= 0
        trainer.save_model(tmp_path / "saved")
        model, tokenizer = TokenRewardModel.from_pretrained(tmp_path / "saved"), tiny.tokenizer()
        assert model.token_head_is_trained and not model.sequence_head_is_trained
        for refuse in (
            lambda: TokenScorer(model, tokenizer, signal="sequence_score"),
            lambda: CompletionScorer(model, tokenizer, signal="sequence_score"),
            lambda: RewardModelJudge(model, tokenizer),
        ):
            with pytest.raises(ValueError, match="sequence head"):
                refuse()

    def test_a_sequence_head_that_pairs_have_trained_is_kept(self, tmp_path):
        model = backbone()
        make(MIXED, tmp_path, model).train()
        weight = model.score.weight.detach().clone()
        make(ALONE, tmp_path, model).train()
        assert weight.any() and torch.equal(model.score.weight, weight)

    def test_a_new_head_is_known_at_any_precision_until_it_is_trained(self, tmp_path):
        model = TokenRewardModel.from_backbone(tiny.causal_lm())
        assert model.sequence_head_is_new
        for dtype in (torch.bfloat16, torch.float32, torch.float64):
            assert model.to(dtype).sequence_head_is_new
        model = backbone()
        make([PAIR, PAIR], tmp_path, model, head_learning_rate=0.0).train()
        assert not model.sequence_head_is_new  # its backbone has learned under it

    def test_so_is_one_whose_loss_weighs_nothing(self, tmp_path, caplog):
        model = backbone()
        make([PAIR, PAIR], tmp_path, model, sequence_loss_weight=0.0).train()
        assert "`sequence_loss_weight` is 0, so the sequence head stays untrained" in caplog.text
        assert not model.sequence_head_is_trained
        with pytest.raises(ValueError, match="sequence head"):
            CompletionScorer(model, tiny.tokenizer(), signal="sequence_score")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"center_rewards_coefficient": 0.01}, "`center_rewards_coefficient` has no effect"),
            ({"max_edit_ratio": 0.5}, "`max_edit_ratio` has no effect"),
            ({"use_anchors": True}, "`use_anchors` has no effect"),
            ({"sequence_loss_weight": 3.0}, "`sequence_loss_weight` has no effect"),
            ({"unchanged_token_weight": 0}, "the model would call all wrong"),
            ({"token_loss_weight": 0}, "there is nothing to learn from them"),
        ],
    )
    def test_settings_without_effect(self, settings, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            make(ALONE, tmp_path, **settings)

    def test_rows_that_train_nothing_are_refused_beside_pairs_too(self, tmp_path):
        with pytest.raises(ValueError, match="there is nothing to learn from them"):
            make(MIXED, tmp_path, token_loss_weight=0)

    def test_accuracy_is_over_pairs_alone(self, tmp_path):
        both = make(MIXED, tmp_path, eval_rows=MIXED, per_device_eval_batch_size=4).evaluate()
        pairs = [row for row in MIXED if row["chosen"]]
        alone = make(pairs, tmp_path, eval_rows=pairs).evaluate()
        for name in ("accuracy", "margin", "min_reward", "loss/sequence"):
            assert both[f"eval_{name}"] == pytest.approx(alone[f"eval_{name}"], abs=1e-5)

    def test_predictions_are_of_pairs(self, tmp_path):
        trainer = make(MIXED, tmp_path)
        with pytest.raises(ValueError, match="a row has one side"):
            trainer.predict(trainer.train_dataset)


class TestEvaluation:
    def test_figures_are_those_of_the_trainer(self, tmp_path):
        model = backbone()
        metrics = make(MIXED, tmp_path, model, eval_rows=MIXED, per_device_eval_batch_size=4).evaluate()
        report = evaluate_token_rewards(model, tiny.tokenizer(), Dataset.from_list(MIXED), batch_size=4, resamples=20)
        assert (report.rows, report.pairs, report.rows_with_spans) == (6, 2, 3)
        assert report.sequence_accuracy.value == pytest.approx(metrics["eval_accuracy"])
        assert report.token_auroc.value == pytest.approx(metrics["eval_token_auroc"])
        assert report.token_accuracy.value == pytest.approx(metrics["eval_token_accuracy"])

    def test_the_threshold_comes_from_other_rows(self, tmp_path):
        model, tokenizer, rows = backbone(), tiny.tokenizer(), Dataset.from_list(ALONE)
        first = evaluate_token_rewards(model, tokenizer, rows, resamples=20)
        assert math.isnan(first.span_f1.value) and first.span_threshold is None
        threshold = first.best_span_threshold
        best = evaluate_token_rewards(model, tokenizer, rows, span_threshold=threshold, resamples=20)
        first.save(tmp_path / "report.json")
        written = json.loads((tmp_path / "report.json").read_text())["best_span_threshold"]
        again = evaluate_token_rewards(model, tokenizer, rows, span_threshold=written, resamples=20)
        assert again.span_threshold == threshold and again.span_f1 == best.span_f1
        assert math.isnan(best.calibration_error) and "share edited in" not in best.table()  # of pairs alone
        none = evaluate_token_rewards(model, tokenizer, rows, span_threshold=-1e9, resamples=20)
        assert none.span_threshold == (-1e9, math.inf) and "text's lowest" not in none.table()
        assert none.span_f1.value == pytest.approx(1 / best.rows_with_spans)  # the row without a wrong character
        assert best.span_f1.value >= none.span_f1.value and best.span_threshold == threshold
        assert math.isnan(best.sequence_accuracy.value) and "F1 of wrong characters" in best.table()

    def test_a_threshold_without_spans_is_an_error(self):
        rows = Dataset.from_list([{"chosen": " a", "rejected": " b"}])
        with pytest.raises(ValueError, match="`span_threshold` has no effect"):
            evaluate_token_rewards(backbone(), tiny.tokenizer(), rows, span_threshold=0.0)
        with pytest.raises(ValueError, match="`span_threshold` must be a finite number"):
            evaluate_token_rewards(backbone(), tiny.tokenizer(), rows, span_threshold=math.nan)
        for bad in ("x", [1, 2, 3], {"score": 1}, (), (0.0, "a"), True):
            with pytest.raises(ValueError, match="must be a number or a `SpanThreshold`"):
                evaluate_token_rewards(backbone(), tiny.tokenizer(), rows, span_threshold=bad)
        with pytest.raises(ValueError, match="margin of `span_threshold` must be more than 0"):
            evaluate_token_rewards(backbone(), tiny.tokenizer(), rows, span_threshold=(0.0, -1.0))

    def test_views_mark_what_is_wrong(self):
        scorer = TokenScorer(backbone(), tiny.tokenizer(), "model")
        [row] = score_dataset([{"completion": TEXT, "completion_spans": [[5, 11]]}], scorer)
        [text] = row.texts
        assert "".join(token for token, seen in zip(text.tokens, text.edited, strict=True) if seen) == " movie"


class TestCharacters:
    # "so bad, bad" in the tokens so| b|ad|,| bad
    TOKENS = ((0, 2, 0), (3, 4, 0), (4, 6, 1), (6, 7, 0), (8, 11, 0), (0, 0, 0))

    def test_a_word_has_the_score_of_its_last_token(self):
        text = marked_text(self.TOKENS, [1.0, 9.0, -2.0, 0.0, -1.0, -9.0], [[3, 6]])
        assert text.scores.tolist() == [1, 1, 1, -2, -2, -2, 0, 0, -1, -1, -1]
        assert text.wrong.tolist() == [i in (3, 4, 5) for i in range(11)]

    def test_f1(self):
        text = marked_text(self.TOKENS, [1.0, 9.0, -2.0, 0.0, -1.0, -9.0], [[3, 6]])
        # Nothing; "bad"; both "bad"; and ", bad" too.
        f1 = character_f1(text, np.array([-3.0, -1.5, -0.5, 0.5]))
        assert f1.tolist() == pytest.approx([0, 1, 2 * 3 / 9, 2 * 3 / 11])
        nothing = marked_text(self.TOKENS, [1.0] * 6, [])
        assert character_f1(nothing, np.array([0.0, 2.0])).tolist() == [1, 0]

    def test_the_best_threshold(self):
        text = marked_text(self.TOKENS, [1.0, 9.0, -2.0, 0.0, -1.0, -9.0], [[3, 6]])
        assert best_span_threshold([text]) == (-1.5, math.inf)
        assert best_span_threshold([marked_text(self.TOKENS, [1.0] * 6, [])]) == (1.0, math.inf)  # nothing is below
        assert math.isnan(best_span_threshold([]).score)

    def test_a_margin_goes_with_the_text(self):
        text = marked_text(self.TOKENS, [1.0, 9.0, -2.0, 0.0, -1.0, -9.0], [[3, 6]])
        # Within 1.5 of the lowest, -2, are both "bad", and what scores below the threshold is among them.
        f1 = character_f1(text, np.array([-3.0, -1.5, 0.5]), margin=1.5)
        assert f1.tolist() == pytest.approx([0, 1, 2 * 3 / 9])

    def test_the_best_margin(self):
        # In each, one word is wrong: the lowest, which scores higher than a right word of the other.
        mild = marked_text(self.TOKENS, [3.0, 9.0, 1.0, 3.0, 3.0, 0.0], [[3, 6]])
        harsh = marked_text(self.TOKENS, [0.0, 9.0, -3.0, 0.0, 0.0, 0.0], [[3, 6]])
        best = best_span_threshold([mild, harsh])
        assert [character_f1(text, np.array([best.score]), best.margin)[0] for text in (mild, harsh)] == [1, 1]
        assert 0 < best.margin <= 3 and best.score > 1
        assert max(character_f1(harsh, np.linspace(1, 4, 9)) + character_f1(mild, np.linspace(1, 4, 9))) < 2


def test_rows_in_which_nothing_is_wrong_teach_nothing(tmp_path):
    rows = [{"completion": TEXT, "completion_spans": []}, {"completion": TEXT + " b", "completion_spans": []}]
    with pytest.raises(ValueError, match="no token of the training set is marked as wrong"):
        make(rows, tmp_path)
