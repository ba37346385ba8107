"""Rows of one side: marked spans without a correction."""

import pytest
import torch
from datasets import Dataset, IterableDataset

from preference_cases import GOOD, assistant, prepare, user
from trl_tokenreward.data.collator import DataCollatorForTokenReward
from trl_tokenreward.data.preprocessing import prepare_dataset


pytestmark = pytest.mark.any_trl


TEXT = " This movie was terrific."
ONE = {"prompt": "So?", "completion": TEXT, "completion_spans": [[5, 11], [17, 25]]}


def stream(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


def table(*rows):
    """As Arrow joins rows of several kinds: what one lacks is `None`."""
    columns = {column: None for row in rows for column in row}
    return Dataset.from_list([{**columns, **row} for row in rows])


def marked(row, tokenizer, mask="rejected_edit_mask", value=1):
    return tokenizer.decode([i for i, seen in zip(row["rejected_ids"], row[mask], strict=True) if seen == value])


def weights(row, tokenizer):
    """What each weight other than 1 is given to."""
    found = {w for w, inside in zip(row["rejected_token_weights"], row["rejected_completion_mask"], strict=True)}
    return {weight: marked(row, tokenizer, "rejected_token_weights", weight) for weight in found - {1.0}}


class TestRowsOfOneSide:
    def test_the_marked_tokens_are_wrong(self, tokenizer):
        [row] = prepare([ONE], tokenizer)
        assert marked(row, tokenizer) == " movieterrific."
        assert marked(row, tokenizer, "rejected_completion_mask") == TEXT + "<eos>"
        assert not any(row["rejected_anchor_mask"])
        assert sorted(row) == sorted(f"rejected_{part}" for part in (*MASK_PARTS, "token_weights"))
        assert row["rejected_token_weights"] is None

    @pytest.mark.parametrize("spans", [[], [[0, 25]]])
    def test_all_right_and_all_wrong(self, spans, tokenizer):
        rows, dropped = prepare_dataset(Dataset.from_list([ONE, {**ONE, "completion_spans": spans}]), tokenizer)
        assert dropped.counts() == {"rows": 2, "kept": 2, "identical": 0, "too_long": 0, "not_minimal": 0}
        assert marked(rows[1], tokenizer) == (TEXT.strip() if spans else "")

    def test_rejected_alone_is_the_same(self, tokenizer):
        other = {"prompt": "So?", "rejected": TEXT, "rejected_spans": ONE["completion_spans"]}
        assert list(prepare([other], tokenizer)) == list(prepare([ONE], tokenizer))

    def test_messages(self, tokenizer):
        one = {"completion": [assistant(TEXT)], "prompt": [user("So?")], "completion_spans": [[5, 11]]}
        implicit = {"completion": [user("So?"), assistant(TEXT)], "completion_spans": [[5, 11]]}
        [row], [other] = prepare([one], tokenizer), prepare([implicit], tokenizer)
        assert row == other and marked(row, tokenizer) == " movie"
        assert marked(row, tokenizer, "rejected_completion_mask").startswith(TEXT)

    def test_severity_weighs_the_tokens_of_a_span(self, tokenizer):
        spans = [{"start": 5, "end": 11, "severity": 5}, {"start": 5, "end": 11, "severity": 2.5}]
        [row] = prepare([{**ONE, "completion_spans": [*spans, {"start": 17, "end": 24, "severity": 0.5}]}], tokenizer)
        assert weights(row, tokenizer) == {5.0: " movie", 0.5: "terrific"}

    def test_severity_weighs_in_pairs_too(self, tokenizer):
        span = {"start": 1, "end": 5, "severity": 3.0}
        [row] = prepare([{**GOOD, "rejected_spans": [span]}], tokenizer)
        assert weights(row, tokenizer) == {3.0: "This"}

    def test_only_what_was_judged_has_a_label(self, tokenizer):
        row = {**ONE, "completion_spans": [[5, 11]], "completion_judged": [[5, 15]]}
        [row] = prepare([row], tokenizer)
        assert marked(row, tokenizer) == " movie"
        assert weights(row, tokenizer) == {0.0: "So? This terrific.<eos>"}

    def test_a_span_that_reaches_beyond_what_was_judged(self, tokenizer):
        [row] = prepare([{**ONE, "completion_spans": [[1, 11]], "completion_judged": [[5, 11]]}], tokenizer)
        assert marked(row, tokenizer) == " movie"

    @pytest.mark.parametrize("streaming", [False, True])
    def test_rows_of_one_side_and_pairs(self, streaming, tokenizer):
        rows = [ONE, GOOD, {**ONE, "prompt": None}]
        dataset = stream(rows) if streaming else table(*rows)
        first, pair, last = prepare_dataset(dataset, tokenizer)[0]
        [alone], [of_pairs] = prepare([ONE], tokenizer), prepare([GOOD], tokenizer)
        assert {name: value for name, value in first.items() if not name.startswith(("chosen", "margin"))} == alone
        assert {name: pair[name] for name in of_pairs} == of_pairs
        assert first["chosen_ids"] is None and last["rejected_completion_mask"][0] == 1

    def test_only_too_long_rows_of_one_side_are_dropped(self, tokenizer):
        rows = [ONE, {**ONE, "completion": TEXT * 20}, GOOD]
        dataset, dropped = prepare_dataset(table(*rows), tokenizer, max_length=60, max_edit_ratio=0.01)
        assert dropped.counts() == {"rows": 3, "kept": 1, "identical": 0, "too_long": 1, "not_minimal": 1}
        assert marked(dataset[0], tokenizer) == " movieterrific."

    def test_prepared_rows_pass_as_they_are(self, tokenizer):
        spans = [{"start": 5, "end": 11, "severity": 5.0}]
        dataset = prepare([{**ONE, "completion_spans": spans}, {**ONE, "completion_spans": spans}], tokenizer)
        assert list(prepare_dataset(dataset, tokenizer)[0]) == list(dataset)
        both = prepare_dataset(table(GOOD, ONE), tokenizer)[0]
        assert list(prepare_dataset(both, tokenizer)[0]) == list(both)


MASK_PARTS = ("ids", "completion_mask", "edit_mask", "anchor_mask")
SPAN = {"start": 5, "end": 11}
MALFORMED = {
    "both": ({**ONE, "chosen": "a", "rejected": "b"}, r"column `completion`: is there beside \['chosen', 'rejected'\]"),
    "neither": ({**ONE, "completion": None}, "column `completion_spans`: marks characters of `completion`"),
    "nothing": ({"completion": None, "chosen": None}, "column `completion`: is missing, and so are `chosen`"),
    "no-spans": ({"completion": TEXT, "completion_spans": None}, "column `completion_spans`: is missing"),
    "spans-of-a-pair": ({**GOOD, "completion_spans": []}, "column `completion_spans`: marks characters"),
    "judged-of-a-pair": ({**GOOD, "completion_judged": []}, "column `completion_judged`: marks characters"),
    "outside": ({**ONE, "completion_spans": [[0, 26]]}, r"the span \[0, 26\) must lie within the 25 characters"),
    "severity": (
        {**ONE, "completion_spans": [{**SPAN, "severity": 0}]},
        "`completion_spans`: the `severity` of a span",
    ),
    "severity-nan": ({**ONE, "completion_spans": [{**SPAN, "severity": float("nan")}]}, "must be a positive number"),
    "severity-bool": ({**ONE, "completion_spans": [{**SPAN, "severity": True}]}, "must be a positive number"),
    "severity-of-chosen": (
        {**GOOD, "chosen_spans": [{"start": 1, "end": 5, "severity": 2}]},
        "column `chosen_spans`: a span has a `severity`",
    ),
    "judged-nothing": ({**ONE, "completion_spans": [], "completion_judged": []}, "completion_judged`: covers no token"),
    "judged-misspelt": (
        {**ONE, "completion_spans": [], "completion_judge": []},
        "column `completion_judge`: is not read. Call it `completion_judged`",
    ),
    "judged": ({**ONE, "completion_judged": [[3, 3]]}, r"column `completion_judged`: the span \[3, 3\)"),
    "not-judged": (
        {**ONE, "completion_judged": [[1, 11]]},
        r"column `completion_spans`: the span \[17, 25\) lies outside of `completion_judged`",
    ),
    "margin": ({**ONE, "margin": 1.0}, "column `margin`: is of the two sides"),
    "prompt": ({**ONE, "prompt": [user("a")]}, "column `prompt`: must be a text, as `completion` is"),
    "kind": ({**ONE, "completion": 3}, "column `completion`: must be a text or a list of messages"),
    "surrogate": ({**ONE, "completion": "go\ud83d"}, "column `completion`: has half of a character"),
    "weights-length": (
        {"rejected_ids": [1, 2], "rejected_edit_mask": [0, 1], "rejected_token_weights": [1.0]},
        "column `rejected_token_weights`: has 1 entries for 2 token ids",
    ),
    "weights-values": (
        {"rejected_ids": [1, 2], "rejected_edit_mask": [0, 1], "rejected_token_weights": [1.0, -1.0]},
        "column `rejected_token_weights`: must be a list of finite numbers",
    ),
}


class TestMalformedRowsOfOneSide:
    @pytest.mark.parametrize("name", MALFORMED)
    def test_in_the_first_row(self, name, tokenizer):
        row, message = MALFORMED[name]
        with pytest.raises(ValueError, match=rf"Row 0 of the train data set, .*{message}"):
            list(prepare_dataset(stream([row]), tokenizer)[0])

    @pytest.mark.parametrize("name", MALFORMED)
    @pytest.mark.parametrize("before", [ONE, GOOD])
    def test_in_a_later_row(self, name, before, tokenizer):
        row, message = MALFORMED[name]
        with pytest.raises(ValueError, match=rf"Row 1 of the train data set, .*{message}"):
            list(prepare_dataset(stream([before, row] if "rejected_ids" not in row else [IDS, row]), tokenizer)[0])


IDS = {"rejected_ids": [4, 5, 6], "rejected_edit_mask": [0, 1, 0]}


class TestCollator:
    def test_a_row_of_one_side_costs_one_row(self):
        pair = {"chosen_ids": [4, 5, 6, 7], "rejected_ids": [4, 8]}
        weighted = {**IDS, "rejected_token_weights": [0.0, 2.0, 1.0]}
        batch = DataCollatorForTokenReward(pad_token_id=3)([IDS, {**pair, "margin": 2.0}, weighted])
        assert {key: value.float().tolist() for key, value in batch.items()} == {
            "input_ids": [[4, 5, 6, 7], [4, 8, 3, 3], [4, 5, 6, 3], [4, 5, 6, 3]],
            "attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]],
            "completion_mask": [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]],
            "edit_mask": [[0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]],
            "anchor_mask": [[0, 0, 0, 0]] * 4,
            "token_weights": [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [0, 2, 1, 1]],
            "places": [[-1, 2], [0, 1], [-1, 3]],
            "margin": [0, 2, 0],
        }
        assert batch["places"].dtype == torch.long

    def test_rows_of_one_side_alone(self):
        batch = DataCollatorForTokenReward(pad_token_id=3)([IDS, IDS])
        assert batch["input_ids"].shape == (2, 3) and batch["places"].tolist() == [[-1, 0], [-1, 1]]

    def test_what_is_wrong_must_be_marked(self):
        with pytest.raises(ValueError, match="Row 0 of the batch, column `chosen_ids`: is missing"):
            DataCollatorForTokenReward(pad_token_id=3)([{"rejected_ids": [1]}])
