import copy
import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset

import tiny
from trl_tokenreward import TokenRewardConfig, TokenRewardModel, TokenRewardTrainer, align_edits, evaluate_token_rewards
from trl_tokenreward.data.preprocessing import prepare_dataset
from trl_tokenreward.reward_model.evaluation import edit_kinds
from trl_tokenreward.reward_model.metrics import token_auroc
from trl_tokenreward.utils.statistics import auroc_of_ranks


WORDS = ["terrific", "lousy", "good", "lazy", "quick", "standard"]
PAIRS = [
    {"prompt": "Human: how was it?", "chosen": f" This movie was {one}.", "rejected": f" This movie was so {other}."}
    for i, one in enumerate(WORDS)
    for other in WORDS[:i]
] + [
    {"prompt": "Human: how?", "chosen": " I would watch it.", "rejected": " I would watch."},
    {"prompt": "Human: how?", "chosen": " mix the flour", "rejected": " mix the the flour"},
    {"prompt": "Human: how?", "chosen": " the quick brown fox", "rejected": " The quick fox"},
]  # 18 pairs


@pytest.fixture(scope="module")
def reward_model():
    model = TokenRewardModel.from_backbone(tiny.causal_lm())
    torch.nn.init.normal_(model.token_score.weight)
    return model


@pytest.fixture(scope="module")
def report(reward_model):
    return evaluate_token_rewards(reward_model, tiny.tokenizer(), Dataset.from_list(PAIRS), batch_size=6, resamples=200)


@pytest.mark.parametrize("use_anchors", [False, True])
def test_figures_are_those_of_the_trainer(reward_model, tmp_path, use_anchors):
    settings = {"use_cpu": True, "bf16": False, "report_to": "none", "max_edit_ratio": 0.6, "max_length": 27}
    trainer = TokenRewardTrainer(
        copy.deepcopy(reward_model),
        TokenRewardConfig(tmp_path, per_device_eval_batch_size=4, use_anchors=use_anchors, **settings),
        train_dataset=Dataset.from_list(PAIRS),
        eval_dataset=Dataset.from_list(PAIRS),
        processing_class=tiny.tokenizer(),
    )
    metrics = trainer.evaluate()
    report = evaluate_token_rewards(
        reward_model,
        tiny.tokenizer(),
        Dataset.from_list(PAIRS).to_iterable_dataset() if use_anchors else Dataset.from_list(PAIRS),
        batch_size=4,
        max_length=27,
        max_edit_ratio=0.6,
        use_anchors=use_anchors,
        resamples=20,
    )
    assert report.token_accuracy.value == metrics["eval_token_accuracy"] not in (0.0, 0.5, 1.0)
    assert report.token_auroc.value == metrics["eval_token_auroc"]
    assert report.dropped == trainer.dropped["eval"] and report.rows == report.dropped["kept"] < len(PAIRS)
    # Prepared rows are taken as they are. The trainer's accuracy is a mean over batches, so these have one size.
    rows = trainer.eval_dataset.select(range(report.rows // 4 * 4))
    report = evaluate_token_rewards(reward_model, tiny.tokenizer(), rows, batch_size=4, resamples=20)
    assert report.sequence_accuracy.value == trainer.evaluate(rows)["eval_accuracy"] not in (0.0, 1.0)


def test_figures_by_brute_force(report, reward_model):
    rows, _ = prepare_dataset(Dataset.from_list(PAIRS), tiny.tokenizer())
    tokens = []  # of the rejected sides: score, wrong, relative place, length
    edited = []  # of both: probability, edited in
    for row in rows:
        for side in ("chosen", "rejected"):
            with torch.no_grad():
                scores = reward_model(torch.tensor([row[f"{side}_ids"]])).token_scores[0].tolist()
            inside = [i for i, real in enumerate(row[f"{side}_completion_mask"]) if real]
            for place, i in enumerate(inside):
                wrong = row[f"{side}_edit_mask"][i]
                if side == "rejected":
                    tokens.append((scores[i], wrong, place / len(inside), len(inside)))
                if wrong:
                    edited.append((1 / (1 + math.exp(-scores[i])), side == "chosen"))

    def auroc(part):
        wrong, right = ([score for score, label, *_ in part if label == kind] for kind in (1, 0))
        pairs = [(a < b) + 0.5 * (a == b) for a in wrong for b in right]
        return sum(pairs) / len(pairs)

    assert report.token_auroc.value == pytest.approx(auroc(tokens), abs=2e-3)
    for i, group in enumerate(report.by_position):
        part = [t for t in tokens if i / 5 <= t[2] + 1e-9 < (i + 1) / 5]
        assert (group.tokens, group.edited) == (len(part), sum(t[1] for t in part))
        assert group.mean_score == pytest.approx(np.mean([t[0] for t in part]), abs=1e-4)
    assert sum(group.edited for group in report.by_length) == sum(t[1] for t in tokens)
    for group in report.by_length:
        low, high = (int(part) for part in group.name.removesuffix(" tokens").split(" to "))
        part = [t for t in tokens if low <= t[3] <= high]
        assert group.tokens == len(part) and group.auroc == pytest.approx(auroc(part), abs=2e-2)
    assert len(report.by_length) > 1

    error = 0
    for i, reliability in enumerate(report.reliability):
        part = [e for e in edited if i / 10 <= e[0] < (i + 1) / 10]
        assert reliability.tokens == len(part)
        error += abs(sum(p - label for p, label in part)) / len(edited)
    assert report.calibration_error == pytest.approx(error, abs=1e-4) and error > 0.01


def test_kinds_of_edits_are_those_of_the_alignment(report):
    tokenizer = tiny.tokenizer()
    rows, _ = prepare_dataset(Dataset.from_list(PAIRS), tokenizer)
    seen = {"insert": 0, "delete": 0, "replace": 0}
    for raw, row in zip(PAIRS, rows, strict=True):
        alignment = align_edits(raw["rejected"], raw["chosen"], tokenizer)
        kinds = edit_kinds(row)
        expected = {side: [""] * len(kinds[side]) for side in kinds}
        for operation in alignment.operations:
            for side, (start, end) in (
                ("rejected", operation.original_tokens),
                ("chosen", operation.edited_tokens),
            ):
                expected[side][start:end] = [operation.kind] * (end - start)
                seen[operation.kind] += (end - start) * (side == "chosen" or operation.kind == "delete")
        assert {side: kinds[side].tolist() for side in kinds} == expected
    assert all(seen.values()) and report.rows_without_kind == 0
    insert, delete, _ = report.by_kind
    assert (insert.edited, delete.edited) == (seen["insert"], seen["delete"])


def test_rows_whose_sides_do_not_match_have_no_kind(reward_model):
    rows = [{**PAIRS[0], "rejected_spans": [[0, 5]]}, {**PAIRS[1], "rejected_spans": [[0, 5]]}]
    report = evaluate_token_rewards(reward_model, tiny.tokenizer(), Dataset.from_list(rows), resamples=10)
    assert report.rows_without_kind == 2 and [group.edited for group in report.by_kind] == [0, 0, 0]
    assert report.token_auroc.value == report.token_auroc.value and math.isnan(report.by_kind[0].auroc)


def test_weighted_auroc_is_that_of_repeated_tokens():
    rng = np.random.default_rng(0)
    scores, labels, counts = rng.integers(0, 6, 30), rng.integers(0, 2, 30).astype(bool), rng.integers(0, 4, 30)
    _, rank = np.unique(scores, return_inverse=True)
    repeated = [torch.from_numpy(np.repeat(values, counts)) for values in (scores, labels)]
    assert auroc_of_ranks(rank, labels, counts) == pytest.approx(token_auroc(*repeated), abs=1e-12)
    assert math.isnan(auroc_of_ranks(rank, labels, counts * labels))


def test_intervals_are_of_rows(report, reward_model):
    for estimate in (report.sequence_accuracy, report.token_accuracy, report.token_auroc):
        assert 0 <= estimate.low < estimate.value < estimate.high <= 1
    # The same samples of rows, row by row.
    rows, _ = prepare_dataset(Dataset.from_list(PAIRS), tiny.tokenizer())
    tokens = []
    for row in rows:
        with torch.no_grad():
            scores = reward_model(torch.tensor([row["rejected_ids"]])).token_scores[0]
        inside, wrong = (torch.tensor(row[f"rejected_{name}_mask"]).bool() for name in ("completion", "edit"))
        tokens.append((-scores[inside], wrong[inside]))
    rng = np.random.default_rng(0)
    samples = [[tokens[i] for i in rng.integers(len(rows), size=len(rows))] for _ in range(200)]
    aurocs = [token_auroc(*map(torch.cat, zip(*sample, strict=True))) for sample in samples]
    low, high = np.quantile(aurocs, [0.025, 0.975])
    assert (report.token_auroc.low, report.token_auroc.high) == pytest.approx((low, high), abs=2e-3)


def test_a_report_is_written(report, tmp_path):
    table = report.table()
    for line in ("| sequence accuracy | 0.", "| kind | tokens | edited | AUROC | mean score |", "| 20 to 40 % |"):
        assert line in table
    lines = table.splitlines()
    for head, rule in zip(lines, lines[1:], strict=False):
        assert not rule.startswith("| ---") or head.count("|") == rule.count("|")
    report.save(tmp_path / "folder" / "report.json")
    saved = json.loads((tmp_path / "folder" / "report.json").read_text())
    assert saved["token_auroc"]["value"] == report.token_auroc.value and len(saved["reliability"]) == 10
    assert None in [b["mean_probability"] for b in saved["reliability"]]  # a bin with nothing in it


def test_token_reports_refuse_what_they_cannot_measure(reward_model):
    rows = Dataset.from_list(PAIRS)
    with pytest.raises(TypeError, match="`model` must be a TokenRewardModel"):
        evaluate_token_rewards(tiny.sequence_classifier(), tiny.tokenizer(), rows)
    with pytest.raises(TypeError, match="`model` must be a TokenRewardModel or an adapter around one, got str"):
        evaluate_token_rewards("a name", tiny.tokenizer(), rows)
    with pytest.raises(
        TypeError, match="`tokenizer` must be a tokenizer, but is 'a name': load it with `AutoTokenizer"
    ):
        evaluate_token_rewards(reward_model, "a name", rows)
    with pytest.raises(TypeError, match="The evaluation data set must be a `Dataset`.*, but is a list: `Dataset.from"):
        evaluate_token_rewards(reward_model, tiny.tokenizer(), PAIRS)
    with pytest.raises(ValueError, match="`num_bins` must be at least 1"):
        evaluate_token_rewards(reward_model, tiny.tokenizer(), rows, num_bins=0)
    for data in (rows, rows.to_iterable_dataset()):
        with pytest.raises(ValueError, match="Nothing is left of the evaluation data set.*raise `max_length`"):
            evaluate_token_rewards(reward_model, tiny.tokenizer(), data, max_length=3)


def test_rows_of_like_length_are_read_together(reward_model, monkeypatch):
    model, tokenizer = reward_model, tiny.tokenizer()
    texts = [" good" * n for n in (1, 27, 2, 26, 1, 28)]
    rows = [{"prompt": "say", "chosen": text, "rejected": text + " bad"} for text in texts]
    widths = []
    monkeypatch.setattr(model, "forward", spied(model.forward, widths))
    together = evaluate_token_rewards(model, tokenizer, Dataset.from_list(rows), batch_size=3, resamples=20)
    assert len(widths) < len(rows)
    padded, widths[:] = sum(widths), []
    alone = evaluate_token_rewards(model, tokenizer, Dataset.from_list(rows), batch_size=1, resamples=20)
    assert padded <= 1.2 * sum(widths)
    for one, other in zip(alone.by_length, together.by_length, strict=True):
        assert one.mean_score == pytest.approx(other.mean_score, abs=1e-6) and one.name == other.name
    assert alone.token_auroc == together.token_auroc and alone.sequence_accuracy == together.sequence_accuracy


def spied(forward, widths):
    def with_note(input_ids, **kwargs):
        widths.append(input_ids.numel())
        return forward(input_ids=input_ids, **kwargs)

    return with_note
