"""Malformed rows: a part of the tests of preprocessing."""

import copy
from types import SimpleNamespace

import pytest
from datasets import Dataset, IterableDataset

from preference_cases import FORMATS, GOOD, assistant, prepare, user
from trl_tokenreward.data.formats import SIDES, row_format
from trl_tokenreward.data.preprocessing import RowPreparer, prepare_dataset


pytestmark = pytest.mark.any_trl


GOOD_IDS = {
    "chosen_ids": [1, 2],
    "rejected_ids": [1, 3],
    **{f"{side}_completion_mask": [0, 1] for side in SIDES},
    **{f"{side}_edit_mask": [0, 1] for side in SIDES},
}


MALFORMED = {
    "missing": ({"prompt": "a", "chosen": "b"}, "column `rejected`: is missing; the row has"),
    "none": ({**GOOD, "rejected": None}, "column `rejected`: must be a text"),
    "type": ({**GOOD, "chosen": 3}, "column `chosen`: must be a text"),
    "prompt": ({**GOOD, "prompt": 3}, "column `prompt`: must be a text"),
    "surrogate": ({**GOOD, "rejected": "go\ud83d"}, r"column `rejected`: has half of a character, '\\ud83d' .a lone"),
    "surrogate-prompt": ({**GOOD, "prompt": "\ud800"}, "column `prompt`: has half of a character"),
    "surrogate-message": (
        {"chosen": [user("a"), assistant("b\udc00")], "rejected": [user("a"), assistant("c")]},
        "column `chosen`: has half of a character",
    ),
    "spans-text": ({**GOOD, "rejected_spans": "[]"}, r"column `rejected_spans`: must be a list of spans \(`\[\]`"),
    "spans-outside": (
        {**GOOD, "rejected_spans": [[0, 26]]},
        r"`rejected_spans`: the span \[0, 26\) .* the 25 characters",
    ),
    "spans-empty": ({**GOOD, "rejected_spans": [[3, 3]]}, r"column `rejected_spans`: the span \[3, 3\)"),
    "spans-negative": ({**GOOD, "chosen_spans": [[-1, 3]]}, r"column `chosen_spans`: the span \[-1, 3\)"),
    "spans-shape": ({**GOOD, "rejected_spans": [[1, 2, 3]]}, r"column `rejected_spans`: a span is \[start, end\]"),
    "spans-float": ({**GOOD, "rejected_spans": [[1.0, 2.5]]}, r"column `rejected_spans`: a span is \[start, end\]"),
    "spans-keys": (
        {**GOOD, "rejected_spans": [{"start": 1, "stop": 2}]},
        r"column `rejected_spans`: a span is \[start, end\]",
    ),
    "spans-misspelt": ({**GOOD, "rejected_span": []}, "column `rejected_span`: is not read. Call it `rejected_spans`"),
    "margin-misspelt": ({**GOOD, "margins": 0.5}, "column `margins`: is not read. Call it `margin`"),
    "margin": ({**GOOD, "margin": "1"}, "column `margin`: must be a number"),
    "margin-nan": ({**GOOD, "margin": float("nan")}, "column `margin`: must be a number"),
    "dialogue": ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}, "shares no"),
    "ids-none": ({**GOOD_IDS, "chosen_ids": 1}, "column `chosen_ids`: must be a list of token ids"),
    "ids-empty": ({**GOOD_IDS, "chosen_ids": []}, "column `chosen_ids`: has no tokens"),
    "ids-float": ({**GOOD_IDS, "chosen_ids": [1.5, 2]}, "column `chosen_ids`: must be a list of integers"),
    "ids-unknown": (
        {**GOOD_IDS, "rejected_ids": [1, 300]},
        "column `rejected_ids`: has the id 300, but the tokenizer's",
    ),
    "ids-negative": (
        {**GOOD_IDS, "chosen_ids": [-1, 3]},
        "column `chosen_ids`: has the id -1, but the tokenizer's are 0",
    ),
    "attention-length": (
        {**GOOD_IDS, "chosen_attention_mask": [1]},
        "column `chosen_attention_mask`: has 1 entries for 2 token ids",
    ),
    "template-arguments": (
        {**FORMATS["conversational"], "chat_template_kwargs": "thinking"},
        "column `chat_template_kwargs`: must be a dictionary, but is 'thinking'",
    ),
    "mask-length": ({**GOOD_IDS, "chosen_edit_mask": [1]}, "column `chosen_edit_mask`: has 1 entries for 2 token ids"),
    "mask-values": (
        {**GOOD_IDS, "rejected_edit_mask": [0, 2]},
        "column `rejected_edit_mask`: must be a list of 0 and 1",
    ),
    "mask-prompt": ({**GOOD_IDS, "chosen_edit_mask": [1, 0]}, "`chosen_edit_mask`: counts tokens that `chosen_compl"),
    "mask-one-side": (
        {k: v for k, v in GOOD_IDS.items() if k != "rejected_completion_mask"},
        "column `rejected_completion_mask`: is missing",
    ),
    "anchors-alone": (
        {"chosen_ids": [1], "rejected_ids": [2], "chosen_anchor_mask": [0], "rejected_anchor_mask": [0]},
        "column `chosen_edit_mask`: is missing",
    ),
    "spans-of-ids": ({**GOOD_IDS, "rejected_spans": [[0, 1]]}, "column `rejected_spans`: counts characters"),
    "no-messages": ({"chosen": [], "rejected": [assistant("a")]}, "column `chosen`: has no messages"),
    "no-role": ({"chosen": [{"content": "a"}], "rejected": [assistant("a")]}, "column `chosen`: messages need `role`"),
    "tools": ({**FORMATS["conversational"], "tools": "[bake"}, "column `tools`: is no JSON"),
    "template-kwargs": (
        {**FORMATS["conversational"], "chat_template_kwargs": 1.5},
        "column `chat_template_kwargs`: must be a dictionary, but is 1.5",
    ),
    "text-prompt": ({**FORMATS["conversational"], "prompt": "hi"}, "column `prompt`: must be a list of messages"),
    "spans-of-many": (
        {
            "prompt": [user("a")],
            "chosen": [assistant("b")],
            "rejected": [assistant("b"), user("c")],
            "rejected_spans": [],
        },
        "column `rejected_spans`: counts characters of `rejected`, which must be one message",
    ),
}


def stream(rows):
    """Rows as they are: no table to fill gaps with None."""
    return IterableDataset.from_generator(lambda: iter(rows))


class TestMalformedRows:
    @pytest.mark.parametrize("name", MALFORMED)
    def test_in_the_first_row(self, name, tokenizer):
        row, message = MALFORMED[name]
        with pytest.raises(ValueError, match=rf"Row 0 of the train data set, .*{message}"):
            list(prepare_dataset(stream([row]), tokenizer)[0])

    @pytest.mark.parametrize("name", ["missing", "none", "spans-outside", "margin"])
    def test_in_a_later_row(self, name, tokenizer):
        row, message = MALFORMED[name]
        with pytest.raises(ValueError, match=rf"Row 2 of the bread data set, .*{message}"):
            list(prepare_dataset(stream([GOOD, GOOD, row]), tokenizer, name="bread")[0])

    def test_other_columns_are_no_misspellings(self, tokenizer):
        row = {**GOOD, "prompt_id": 3, "chosen_id": 4, "completions": ["a"], "score_chosen": 0.5, "rejected_rating": 2}
        row |= {"chosen_stats": 1, "rejected_stars": 2, "completion_stats": 3}
        assert len(prepare([row], tokenizer)) == 1

    def test_of_a_table(self, tokenizer):
        with pytest.raises(ValueError, match="Row 1 of the train data set, column `rejected`: must be a text"):
            prepare([GOOD, {**GOOD, "rejected": None}], tokenizer)

    def test_that_are_no_dictionaries(self, tokenizer):
        with pytest.raises(
            ValueError, match=r"Row 3 of the train data set, a row must be a dictionary.*but is \['a'\]"
        ):
            RowPreparer("standard", tokenizer)(["a"], 3)
        with pytest.raises(ValueError, match="a row must be a dictionary of columns, but is 'a'"):
            row_format("a")

    def test_that_have_another_format_than_the_first(self, tokenizer):
        dialogue, plain = FORMATS["dialogue"], FORMATS["standard-implicit"]
        with pytest.raises(ValueError, match=r"Row 1 .*column `chosen`: shares no '\\n\\nAssistant:' with `rejected`"):
            prepare([dialogue, plain], tokenizer)
        with pytest.raises(ValueError, match="Row 1 .*column `chosen`: is a whole dialogue, but the first row"):
            prepare([plain, dialogue], tokenizer)
        with pytest.raises(ValueError, match="Row 1 .*column `chosen`: must be a text, as in the first row"):
            list(prepare_dataset(stream([GOOD, FORMATS["conversational"]]), tokenizer)[0])

    def test_a_template_that_cannot_render_a_row(self, tokenizer):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
        with pytest.raises(ValueError, match="Row 0 .*column `chosen`: the chat template cannot render.*alternate"):
            prepare([FORMATS["conversational"]], tokenizer)

    def test_the_tokenizer_must_be_fast_and_have_an_eos(self, tokenizer):
        slow = SimpleNamespace(is_fast=False, eos_token="<eos>", get_vocab=lambda: {"a": 1, "b": 2})
        with pytest.raises(ValueError, match="Use a fast tokenizer"):
            prepare([GOOD], slow)
        assert prepare([{"chosen_ids": [1], "rejected_ids": [2]}], slow)[0]["chosen_edit_mask"] == [1]
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.eos_token = None
        with pytest.raises(ValueError, match="no EOS token"):
            prepare([GOOD], tokenizer)
        assert len(prepare([FORMATS["conversational"]], tokenizer)) == 1

    @pytest.mark.parametrize("streaming", [False, True])
    def test_no_rows(self, streaming, tokenizer):
        dataset = stream([]) if streaming else Dataset.from_dict({"chosen": [], "rejected": []})
        with pytest.raises(ValueError, match="The train data set has no rows"):
            prepare_dataset(dataset, tokenizer)
