"""Dropped: a part of the tests of preprocessing."""

import copy
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from datasets import Dataset, List, Value
from tokenizers import normalizers

from preference_cases import FORMATS, GOOD, IDS, REJECTED, prepare
from trl_tokenreward.data.collator import DataCollatorForTokenReward
from trl_tokenreward.data.dropped import DroppedRows
from trl_tokenreward.data.formats import SIDES, row_format
from trl_tokenreward.data.preprocessing import MASKS, PREPARED_COLUMNS, RowPreparer, prepare_dataset


pytestmark = pytest.mark.any_trl


# One of each outcome. The edit ratios: 2 of 16 tokens, 0, 2 of 28, 6 of 16.
FILTERED = [
    {"chosen_ids": [*range(7), 7], "rejected_ids": [*range(7), 8]},
    {"chosen_ids": [1, 2], "rejected_ids": [1, 2]},
    {"chosen_ids": [*range(13), 13], "rejected_ids": [*range(13), 14]},
    {"chosen_ids": [*range(5), 5, 6, 7], "rejected_ids": [*range(5), 15, 16, 17]},
]


OUTCOMES = {"rows": 4, "kept": 1, "identical": 1, "too_long": 1, "not_minimal": 1}


class TestLeftOut:
    def test_edit_ratio(self, tokenizer):
        def ratio(row):
            return RowPreparer(row_format(row), tokenizer).with_edit_ratio(row, 0)[1]

        assert ratio(FILTERED[0]) == 2 / 16
        assert ratio(FILTERED[1]) == 0.0
        row = {"chosen_ids": [1, 2, 3], "rejected_ids": [1, 4, 3]}
        masks = {f"{side}_completion_mask": [0, 1, 1] for side in SIDES}
        assert ratio({**row, **masks}) == 2 / 4
        # Words of the completions alone: no prompt, no EOS, no template, and no tokens.
        edit = {"prompt": "p q", "chosen": " a b, c", "rejected": " a b, unbelievable"}
        assert ratio(edit) == 2 / 8
        messages = {side: [{"role": "assistant", "content": edit[side].strip()}] for side in SIDES}
        assert ratio({**messages, "prompt": [{"role": "user", "content": "p"}]}) == 2 / 8
        # Spans replace the alignment on their side.
        assert ratio({**edit, "rejected_spans": []}) == 1 / 8
        assert ratio({**edit, "rejected_spans": [[1, 4]], "chosen_spans": [[1, 2]]}) == 3 / 8

    def test_each_row_counts_for_one_reason(self, tokenizer):
        dataset, dropped = prepare_dataset(Dataset.from_list(FILTERED), tokenizer, max_length=10, max_edit_ratio=0.3)
        assert dropped.counts() == OUTCOMES
        assert [row["chosen_ids"] for row in dataset] == [FILTERED[0]["chosen_ids"]]
        assert dropped.describe() == "1 of 4 rows are kept (1 identical, 1 too_long, 1 not_minimal)"

    def test_a_pair_that_the_tokenizer_does_not_tell_apart_is_identical(self, tokenizer):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
        decomposed = {"prompt": "a", "chosen": " cafe\u0301", "rejected": " caf\u00e9"}
        _, dropped = prepare_dataset(Dataset.from_list([decomposed, GOOD]), tokenizer)
        assert dropped.counts()["identical"] == dropped.counts()["kept"] == 1

    def test_the_bounds_themselves_are_kept(self, tokenizer):
        dataset, _ = prepare_dataset(Dataset.from_list(FILTERED[:1]), tokenizer, max_length=8, max_edit_ratio=0.125)
        assert len(dataset) == 1

    def test_either_side_may_be_too_long(self, tokenizer):
        rows = [
            {"chosen_ids": [1], "rejected_ids": [1, 2, 3]},
            {"chosen_ids": [1, 2, 3], "rejected_ids": [1]},
            *FILTERED[3:],
        ]
        _, dropped = prepare_dataset(Dataset.from_list([*rows, {"chosen_ids": [1], "rejected_ids": [2]}]), tokenizer, max_length=2)  # fmt: skip
        assert dropped.counts()["too_long"] == 3 and dropped.counts()["kept"] == 1

    def test_without_limits_only_identical_rows_go(self, tokenizer):
        _, dropped = prepare_dataset(Dataset.from_list(FILTERED), tokenizer)
        assert dropped.counts() == {"rows": 4, "kept": 3, "identical": 1, "too_long": 0, "not_minimal": 0}

    def test_nothing_left_says_why_and_what_to_change(self, tokenizer):
        message = (
            r"Nothing is left of the train data set: 0 of 4 rows are kept \(1 identical, 2 too_long, 1 not_minimal\). "
            r"To have rows, give pairs that differ or raise `max_length` or raise `max_edit_ratio`."
        )
        rows = [FILTERED[1], FILTERED[2], FILTERED[2], FILTERED[3]]
        with pytest.raises(ValueError, match=message):
            prepare(rows, tokenizer, max_length=10, max_edit_ratio=0.3)

    def test_several_processes_prepare_the_same(self, tokenizer):
        rows = [{**GOOD, "chosen": f" This movie was {i}."} for i in range(6)] + [{**GOOD, "chosen": REJECTED}]
        alone, counts = prepare_dataset(Dataset.from_list(rows), tokenizer)
        together, their_counts = prepare_dataset(Dataset.from_list(rows), tokenizer, num_proc=2)
        assert list(alone) == list(together) and counts.counts() == their_counts.counts()
        with pytest.raises(ValueError, match="Row 5 of the train data set, column `rejected`"):
            prepare([*rows[:5], {**GOOD, "rejected": None}, *rows[5:]], tokenizer, num_proc=2)

    def test_a_stream_counts_as_it_is_read(self, tokenizer):
        dataset = Dataset.from_list(FILTERED).to_iterable_dataset()
        dataset, dropped = prepare_dataset(dataset, tokenizer, max_length=10, max_edit_ratio=0.3)
        assert dropped.counts()["rows"] == 0
        next(iter(dataset))
        assert dropped.counts()["kept"] == 1
        list(dataset)
        assert dropped.counts() == {"rows": 5, "kept": 2, "identical": 1, "too_long": 1, "not_minimal": 1}

    def test_data_loader_workers_count_too(self, tokenizer):
        dataset = Dataset.from_list(FILTERED * 8).to_iterable_dataset(num_shards=2)
        dataset, dropped = prepare_dataset(dataset, tokenizer, max_length=10, max_edit_ratio=0.3, num_workers=2)
        loader = torch.utils.data.DataLoader(
            dataset,
            num_workers=2,
            batch_size=2,
            collate_fn=DataCollatorForTokenReward(0),
        )
        rows = sum(len(batch["input_ids"]) // 2 for batch in loader)
        assert rows == 8
        # Each worker counts in a place of its own: two that add to one number lose some.
        assert dropped._counts.sum(1).tolist() == [0, 16, 16]
        assert dropped.counts() == {key: 8 * count for key, count in OUTCOMES.items()}

    def test_a_stream_can_be_sent_to_a_worker_that_is_not_forked(self, tokenizer):
        dataset = Dataset.from_list(FILTERED).to_iterable_dataset()
        dataset, dropped = prepare_dataset(dataset, tokenizer, max_length=10, max_edit_ratio=0.3)
        sent = pickle.loads(ForkingPickler.dumps(dataset))
        assert len(list(sent)) == 1
        assert dropped.counts() == OUTCOMES

    def test_a_workers_error_says_so(self, tokenizer):
        dataset = Dataset.from_list([GOOD, GOOD, GOOD, {**GOOD, "rejected": None}]).to_iterable_dataset(num_shards=2)
        loader = torch.utils.data.DataLoader(prepare_dataset(dataset, tokenizer)[0], num_workers=2, collate_fn=list)
        with pytest.raises(
            ValueError, match=r"Row 1 \(counted in the part of data loader worker 1\) of the train data"
        ):
            list(loader)

    def test_a_copied_stream_counts_in_the_same_place(self, tokenizer):
        dropped = DroppedRows()
        copy.deepcopy({"counts": dropped})["counts"].add("kept")
        assert dropped.counts()["kept"] == 1


class TestColumns:
    def test_types_do_not_depend_on_the_rows(self, tokenizer):
        row = {**FORMATS["standard"], "rejected_spans": [[1, 2]], "tools": "[]", "source": "web"}
        dataset = prepare([row], tokenizer)
        assert dataset.features == {
            "source": Value("string"),
            "chosen_ids": List(Value("int64")),
            "rejected_ids": List(Value("int64")),
            **{f"{side}_{name}": List(Value("int8")) for side in SIDES for name in MASKS},
            "rejected_token_weights": List(Value("float32")),
        }

    def test_a_stream_has_the_same(self, tokenizer):
        table = Dataset.from_list([{**FORMATS["standard"], "source": "web"}])
        prepared = prepare_dataset(table.to_iterable_dataset(), tokenizer)[0]
        assert prepared.features == prepare_dataset(table, tokenizer)[0].features
        assert set(next(iter(prepared))) == {"source", *PREPARED_COLUMNS}

    def test_the_format_of_the_data_set_does_not_matter(self, tokenizer):
        dataset = Dataset.from_list([IDS]).with_format("torch")
        assert prepare_dataset(dataset, tokenizer)[0][0]["chosen_edit_mask"] == [0, 1, 1, 0]
