import copy
import gzip
import json
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, IterableDataset, List, Value
from tokenizers.processors import ByteLevel, TemplateProcessing
from trl import RewardTrainer

from tiny import tokenizer as make_tokenizer
from trl_tokenreward.data.collator import DataCollatorForTokenReward
from trl_tokenreward.data.dropped import DroppedRows
from trl_tokenreward.data.formats import SIDES, row_format
from trl_tokenreward.data.preprocessing import MASKS, PREPARED_COLUMNS, RowPreparer, prepare_dataset


SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CHAT_TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if thinking is defined and thinking %}<think>{% endif %}{% endif %}"
)
PROMPT = "Human: how do I bake bread?"
CHOSEN, REJECTED = " This movie was lousy.", " This movie was terrific."


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = make_tokenizer("bpe")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def with_bos(tokenizer):
    """The tokenizer puts `<unk>` before and after every text by itself, as Llama's does with its BOS."""
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unk> $A <unk>", special_tokens=[("<unk>", tokenizer.unk_token_id)]
    )
    return tokenizer


def prepare(rows, tokenizer, **kwargs):
    return prepare_dataset(Dataset.from_list(rows), tokenizer, **kwargs)[0]


def prepare_one(row, tokenizer):
    return prepare([row], tokenizer)[0]


def text(row, side, tokenizer, mask=None, inverted=False):
    """The text of the tokens of one side that a mask counts."""
    ids = row[f"{side}_ids"]
    counted = [1] * len(ids) if mask is None else row[f"{side}_{mask}"]
    return tokenizer.decode([i for i, m in zip(ids, counted, strict=True) if bool(m) != inverted])


def edits(row, tokenizer):
    return tuple(text(row, side, tokenizer, "edit_mask").strip() for side in SIDES)


def parts(row, side, tokenizer):
    """Prompt and completion."""
    return text(row, side, tokenizer, "completion_mask", inverted=True), text(row, side, tokenizer, "completion_mask")


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


DIALOGUE = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: how was the movie?\n\nAssistant:"
FORMATS = {
    "standard": {"prompt": PROMPT, "chosen": CHOSEN, "rejected": REJECTED},
    "standard-implicit": {"chosen": PROMPT + CHOSEN, "rejected": PROMPT + REJECTED},
    "dialogue": {"chosen": DIALOGUE + CHOSEN, "rejected": DIALOGUE + REJECTED},
    "conversational": {
        "prompt": [user("how was it?")],
        "chosen": [assistant(CHOSEN)],
        "rejected": [assistant(REJECTED)],
    },
    "conversational-implicit": {
        "chosen": [user("how was it?"), assistant(CHOSEN)],
        "rejected": [user("how was it?"), assistant(REJECTED)],
    },
}
EXPECTED_PARTS = {
    "standard": (PROMPT, "{}<eos>"),
    "standard-implicit": ("", PROMPT + "{}<eos>"),
    "dialogue": (DIALOGUE, "{}<eos>"),
    "conversational": ("<user>how was it?<eos>\n<assistant>", "{}<eos>\n"),
    "conversational-implicit": ("<user>how was it?<eos>\n<assistant>", "{}<eos>\n"),
}


class TestFormats:
    @pytest.mark.parametrize("name", FORMATS)
    def test_prompt_completion_and_edit(self, name, tokenizer):
        row = prepare_one(FORMATS[name], tokenizer)
        prompt, completion = EXPECTED_PARTS[name]
        assert parts(row, "chosen", tokenizer) == (prompt, completion.format(CHOSEN))
        assert parts(row, "rejected", tokenizer) == (prompt, completion.format(REJECTED))
        assert edits(row, tokenizer) == ("lousy", "terrific")

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("kind", ["bpe", "metaspace", "wordpiece", "unigram", "bos"])
    @pytest.mark.parametrize("name", FORMATS)
    def test_the_tokens_are_those_of_reward_trainer(self, name, kind, streaming):
        tokenizer = with_bos(make_tokenizer("bpe")) if kind == "bos" else make_tokenizer(kind)
        tokenizer.chat_template = CHAT_TEMPLATE
        dataset = Dataset.from_list([FORMATS[name]] * 2)
        dataset = dataset.to_iterable_dataset() if streaming else dataset
        args = SimpleNamespace(dataset_num_proc=None, max_length=None)
        theirs = next(iter(RewardTrainer._prepare_dataset(None, dataset, tokenizer, args, "train")))
        ours = next(iter(prepare_dataset(dataset, tokenizer)[0]))
        assert [ours[f"{side}_ids"] for side in SIDES] == [theirs[f"{side}_ids"] for side in SIDES]
        assert any(ours["chosen_edit_mask"]) and any(ours["rejected_edit_mask"])

    def test_special_tokens_around_the_text_are_not_edits(self):
        tokenizer = with_bos(make_tokenizer("bpe"))
        row = prepare_one({"prompt": "", "chosen": "terrific", "rejected": "lousy"}, tokenizer)
        for side in SIDES:
            length = len(row[f"{side}_ids"])
            assert row[f"{side}_completion_mask"] == [0] + [1] * (length - 1)
            assert row[f"{side}_edit_mask"] == [0] + [1] * (length - 3) + [0, 0]  # <unk> … <eos> <unk>

    def test_the_longest_shared_dialogue_is_the_prompt(self, tokenizer):
        shared = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
        row = {"chosen": shared + " d\n\nHuman: e\n\nAssistant: f", "rejected": shared + " dd"}
        prepared = prepare_one(row, tokenizer)
        assert parts(prepared, "chosen", tokenizer) == (shared, " d\n\nHuman: e\n\nAssistant: f<eos>")
        assert parts(prepared, "rejected", tokenizer) == (shared, " dd<eos>")

    def test_dialogues_that_part_early(self, tokenizer):
        shared = "\n\nHuman: a\n\nAssistant:"
        row = {
            "chosen": shared + " b\n\nHuman: c\n\nAssistant: d",
            "rejected": shared + " x\n\nHuman: c\n\nAssistant: d",
        }
        prepared = prepare_one(row, tokenizer)
        assert parts(prepared, "rejected", tokenizer) == (shared, " x\n\nHuman: c\n\nAssistant: d<eos>")
        assert edits(prepared, tokenizer) == ("b", "x")

    def test_an_empty_completion(self, tokenizer):
        row = prepare_one({"chosen": DIALOGUE + " yes", "rejected": DIALOGUE}, tokenizer)
        assert parts(row, "rejected", tokenizer) == (DIALOGUE, "<eos>")
        assert edits(row, tokenizer) == ("yes", "")

    def test_eos_is_never_an_edit(self, tokenizer):
        row = prepare_one({"prompt": "a", "chosen": " lousy<eos>", "rejected": " terrific"}, tokenizer)
        assert edits(row, tokenizer) == ("lousy", "terrific")
        assert row["chosen_ids"][-1] == row["rejected_ids"][-1] == tokenizer.eos_token_id
        assert row["chosen_ids"].count(tokenizer.eos_token_id) == 1

    def test_a_token_across_the_border_is_the_completions(self, tokenizer):
        row = prepare_one({"prompt": "T", "chosen": "his one", "rejected": "hat one"}, tokenizer)
        assert tokenizer.convert_ids_to_tokens(row["chosen_ids"])[0] == "Th"
        assert row["chosen_completion_mask"][0] == 1 and row["chosen_edit_mask"][0] == 1

    def test_special_tokens_written_in_a_prompt_stay_what_they_are(self, tokenizer):
        row = prepare_one({"prompt": "a<eos>b", "chosen": " lousy", "rejected": " terrific"}, tokenizer)
        assert row["chosen_ids"].count(tokenizer.eos_token_id) == 2
        assert parts(row, "chosen", tokenizer) == ("a<eos>b", " lousy<eos>")

    def test_white_space_at_the_end_of_a_trimming_tokenizer_is_compared(self):
        tokenizer = make_tokenizer("bpe")
        tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
        row = prepare_one({"prompt": "a", "chosen": " b", "rejected": " b "}, tokenizer)
        assert [row[f"{side}_edit_mask"] for side in SIDES] == [[0, 0, 0], [0, 0, 1, 0]]

    def test_tools_and_template_arguments(self, tokenizer):
        row = {
            **FORMATS["conversational"],
            "tools": json.dumps([{"name": "bake"}]),
            "chat_template_kwargs": {"thinking": True},
        }
        prompt, completion = parts(prepare_one(row, tokenizer), "chosen", tokenizer)
        # The template opens an answer to come with <think>, and a given one without.
        assert prompt == '<tools>[{"name": "bake"}]\n<user>how was it?<eos>\n<assistant>'
        assert completion == CHOSEN + "<eos>\n"

    def test_messages_that_the_template_trims(self, tokenizer):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
        row = prepare_one(FORMATS["conversational"], tokenizer)
        assert parts(row, "chosen", tokenizer) == ("<user>how was it?<eos>\n<assistant>", CHOSEN.strip() + "<eos>\n")
        assert edits(row, tokenizer) == ("lousy", "terrific")

    def test_what_the_template_shows_beside_the_words_is_compared_too(self, tokenizer):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ message['content'] }}", "{{ message['thought'] }}: {{ message['content'] }}")  # fmt: skip
        answers = [{"role": "assistant", "thought": thought, "content": "yes"} for thought in ("good", "bad")]
        row = {"prompt": [{**user("how?"), "thought": ""}], "chosen": answers[:1], "rejected": answers[1:]}
        assert edits(prepare_one(row, tokenizer), tokenizer) == ("good", "bad")

    def test_completions_of_several_messages(self, tokenizer):
        row = {
            "prompt": [user("a")],
            "chosen": [assistant("b"), user("c"), assistant("lousy")],
            "rejected": [assistant("b"), user("c"), assistant("terrific")],
        }
        prepared = prepare_one(row, tokenizer)
        completion = "b<eos>\n<user>c<eos>\n<assistant>lousy<eos>\n"
        assert parts(prepared, "chosen", tokenizer) == ("<user>a<eos>\n<assistant>", completion)
        assert edits(prepared, tokenizer) == ("lousy", "terrific")

    def test_the_shared_messages_of_an_implicit_prompt(self, tokenizer):
        shared = [user("a"), assistant("b")]
        row = {"chosen": [*shared, user("c"), assistant("d")], "rejected": [*shared, user("x"), assistant("d")]}
        prepared = prepare_one(row, tokenizer)
        assert parts(prepared, "rejected", tokenizer) == (
            "<user>a<eos>\n<assistant>b<eos>\n",
            "<user>x<eos>\n<assistant>d<eos>\n",
        )
        assert edits(prepared, tokenizer) == ("c", "x")

    def test_messages_without_any_prompt(self, tokenizer):
        row = prepare_one({"chosen": [assistant("lousy")], "rejected": [assistant("terrific")]}, tokenizer)
        assert parts(row, "chosen", tokenizer) == ("", "<assistant>lousy<eos>\n")
        assert edits(row, tokenizer) == ("lousy", "terrific")

    def test_margins(self, tokenizer):
        rows = prepare([{**FORMATS["standard"], "margin": 1}, {**FORMATS["standard"], "margin": 2}], tokenizer)
        assert rows["margin"][:] == [1.0, 2.0] and rows.features["margin"] == Value("float64")


class TestIds:
    IDS = {"chosen_ids": [5, 6, 7, 9], "rejected_ids": [5, 8, 9]}

    def test_ids_alone_are_aligned(self, tokenizer):
        row = prepare_one(self.IDS, tokenizer)
        assert row["chosen_completion_mask"] == [1, 1, 1, 1]
        assert row["chosen_edit_mask"] == [0, 1, 1, 0] and row["rejected_edit_mask"] == [0, 1, 0]

    def test_completion_masks_limit_the_alignment(self, tokenizer):
        row = {
            "chosen_ids": [1, 5, 6],
            "rejected_ids": [2, 5],
            "chosen_completion_mask": [0, 1, 1],
            "rejected_completion_mask": [False, True],
        }
        prepared = prepare_one(row, tokenizer)
        assert prepared["chosen_edit_mask"] == [0, 0, 1] and prepared["rejected_edit_mask"] == [0, 0]
        assert prepared["rejected_anchor_mask"] == [0, 1] and prepared["chosen_anchor_mask"] == [0, 0, 0]

    def test_edit_masks_are_used_as_they_are(self, tokenizer):
        row = {**self.IDS, "chosen_edit_mask": [1, 0, 0, 0], "rejected_edit_mask": [0, 0, 1]}
        prepared = prepare_one(row, tokenizer)
        assert prepared["chosen_edit_mask"] == [1, 0, 0, 0] and prepared["rejected_edit_mask"] == [0, 0, 1]
        assert not any(prepared["chosen_anchor_mask"] + prepared["rejected_anchor_mask"])

    def test_the_columns_of_old_trl(self, tokenizer):
        rows = [{"chosen_input_ids": [5, 6], "rejected_input_ids": [5, 7]}]
        assert prepare(rows, tokenizer)[0]["chosen_edit_mask"] == [0, 1]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_preparing_again_changes_nothing(self, streaming, tokenizer):
        rows = [{**row, "margin": 0.5} for row in (FORMATS["standard"], {**FORMATS["standard"], "chosen": " It was."})]
        dataset = Dataset.from_list(rows)
        dataset = dataset.to_iterable_dataset() if streaming else dataset
        once, _ = prepare_dataset(dataset, tokenizer)
        twice, _ = prepare_dataset(once, tokenizer)
        assert list(once) == list(twice) and len(list(once)) == 2
        assert once.features == twice.features


class TestSpans:
    ROW = {"prompt": "a", "chosen": " not bad, this movie", "rejected": " very bad, that movie"}

    @pytest.mark.parametrize("span", [[6, 9], {"start": 6, "end": 9, "why": "taste"}])
    def test_spans_replace_the_alignment_of_their_side(self, span, tokenizer):
        row = prepare_one({**self.ROW, "rejected_spans": [span]}, tokenizer)
        assert edits(row, tokenizer) == ("not this", "bad")

    def test_both_sides_may_have_spans(self, tokenizer):
        row = prepare_one({**self.ROW, "chosen_spans": [[1, 4], [15, 20]], "rejected_spans": [[1, 5]]}, tokenizer)
        assert edits(row, tokenizer) == ("not movie", "very")

    def test_no_spans_mark_nothing(self, tokenizer):
        rows = prepare([{**self.ROW, "rejected_spans": []}, {**self.ROW, "rejected_spans": [[1, 5]]}], tokenizer)
        assert [edits(row, tokenizer) for row in rows] == [("not this", ""), ("not this", "very")]

    @pytest.mark.parametrize("span", [[5, 10], [6, 9], [7, 8]])
    def test_every_token_that_overlaps_is_marked_and_white_space_marks_no_neighbour(self, span, tokenizer):
        # " bad" is one word of the tokenizer's, [5, 9); a span over ", " must not mark " that"
        row = prepare_one({**self.ROW, "rejected_spans": [span]}, tokenizer)
        marked = edits(row, tokenizer)[1]
        assert marked == {5: "bad,", 6: "bad", 7: "a"}[span[0]]
        row = prepare_one({**self.ROW, "rejected_spans": [[9, 11]]}, tokenizer)
        assert edits(row, tokenizer)[1] == ","

    def test_spans_clear_the_anchors_of_their_side(self, tokenizer):
        row = {"prompt": "a", "chosen": " this good movie", "rejected": " this movie"}
        assert sum(prepare_one(row, tokenizer)["rejected_anchor_mask"]) == 1
        assert sum(prepare_one({**row, "rejected_spans": []}, tokenizer)["rejected_anchor_mask"]) == 0

    def test_offsets_of_dialogues_count_from_the_completion(self, tokenizer):
        row = {"chosen": DIALOGUE + CHOSEN, "rejected": DIALOGUE + REJECTED, "rejected_spans": [[1, 5]]}
        assert edits(prepare_one(row, tokenizer), tokenizer) == ("lousy", "This")

    @pytest.mark.parametrize("name", ["conversational", "conversational-implicit"])
    def test_offsets_of_messages_count_from_their_content(self, name, tokenizer):
        row = prepare_one({**FORMATS[name], "rejected_spans": [[1, 5]]}, tokenizer)
        assert edits(row, tokenizer) == ("lousy", "This")

    def test_a_row_whose_sides_are_equal_but_marked_is_kept(self, tokenizer):
        dataset, dropped = prepare_dataset(
            Dataset.from_list([{"prompt": "a", "chosen": " b c", "rejected": " b c", "rejected_spans": [[1, 2]]}]),
            tokenizer,
        )
        assert dropped.counts()["kept"] == 1 and edits(dataset[0], tokenizer) == ("", "b")


GOOD = FORMATS["standard"]
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
    "prompt": ({**GOOD, "prompt": None}, "column `prompt`: must be a text"),
    "spans-none": ({**GOOD, "rejected_spans": None}, r"column `rejected_spans`: must be a list of spans \(`\[\]`"),
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
    "margin": ({**GOOD, "margin": None}, "column `margin`: must be a number"),
    "margin-nan": ({**GOOD, "margin": float("nan")}, "column `margin`: must be a number"),
    "dialogue": ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}, "shares no"),
    "ids-none": ({**GOOD_IDS, "chosen_ids": None}, "column `chosen_ids`: must be a list of token ids"),
    "ids-empty": ({**GOOD_IDS, "chosen_ids": []}, "column `chosen_ids`: has no tokens"),
    "ids-float": ({**GOOD_IDS, "chosen_ids": [1.5, 2]}, "column `chosen_ids`: must be a list of integers"),
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

    def test_of_a_table(self, tokenizer):
        with pytest.raises(ValueError, match="Row 1 of the train data set, column `rejected`: must be a text"):
            prepare([GOOD, {**GOOD, "rejected": None}], tokenizer)

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
        slow = SimpleNamespace(is_fast=False, eos_token="<eos>")
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
        }

    def test_a_stream_has_the_same(self, tokenizer):
        table = Dataset.from_list([{**FORMATS["standard"], "source": "web"}])
        prepared = prepare_dataset(table.to_iterable_dataset(), tokenizer)[0]
        assert prepared.features == prepare_dataset(table, tokenizer)[0].features
        assert set(next(iter(prepared))) == {"source", *PREPARED_COLUMNS}

    def test_the_format_of_the_data_set_does_not_matter(self, tokenizer):
        dataset = Dataset.from_list([TestIds.IDS]).with_format("torch")
        assert prepare_dataset(dataset, tokenizer)[0][0]["chosen_edit_mask"] == [0, 1, 1, 0]


class TestCollator:
    ROWS = [
        {
            "chosen_ids": [4, 5, 6],
            "rejected_ids": [4, 7],
            "chosen_completion_mask": [0, 1, 1],
            "rejected_completion_mask": [0, 1],
            "chosen_edit_mask": [0, 1, 0],
            "rejected_edit_mask": [0, 1],
            "chosen_anchor_mask": [0, 0, 1],
            "rejected_anchor_mask": [0, 0],
        },
        {
            "chosen_ids": [8],
            "rejected_ids": [8, 9, 9, 9],
            "chosen_completion_mask": [1],
            "rejected_completion_mask": [1, 1, 1, 1],
            "chosen_edit_mask": [0],
            "rejected_edit_mask": [0, 1, 1, 1],
            "chosen_anchor_mask": [1],
            "rejected_anchor_mask": [0, 0, 0, 0],
        },
    ]

    def test_golden(self):
        batch = DataCollatorForTokenReward(pad_token_id=3)(self.ROWS)
        assert {key: value.long().tolist() for key, value in batch.items()} == {
            "input_ids": [[4, 5, 6, 3], [8, 3, 3, 3], [4, 7, 3, 3], [8, 9, 9, 9]],
            "attention_mask": [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]],
            "completion_mask": [[0, 1, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]],
            "edit_mask": [[0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1]],
            "anchor_mask": [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        }
        assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.long
        assert all(batch[name].dtype == torch.bool for name in MASKS)

    def test_pad_to_multiple_of(self):
        batch = DataCollatorForTokenReward(pad_token_id=0, pad_to_multiple_of=8)(self.ROWS)
        assert {tuple(value.shape) for value in batch.values()} == {(4, 8)}

    def test_the_pad_token_may_be_eos(self):
        rows = [{"chosen_ids": [5, 1], "rejected_ids": [6, 7, 1]}]
        batch = DataCollatorForTokenReward(pad_token_id=1)(rows)
        assert batch["input_ids"].tolist() == [[5, 1, 1], [6, 7, 1]]
        assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]

    def test_margins(self):
        batch = DataCollatorForTokenReward(pad_token_id=0)([{**row, "margin": i} for i, row in enumerate(self.ROWS)])
        assert batch["margin"].dtype == torch.float and batch["margin"].tolist() == [0.0, 1.0]

    def test_ids_alone_are_aligned(self):
        batch = DataCollatorForTokenReward(pad_token_id=0)([TestIds.IDS])
        assert batch["edit_mask"].long().tolist() == [[0, 1, 1, 0], [0, 1, 0, 0]]
        assert batch["completion_mask"].long().tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]

    def test_an_incomplete_row_is_named(self):
        with pytest.raises(ValueError, match="Row 1 of the batch, column `rejected_ids`: is missing"):
            DataCollatorForTokenReward(pad_token_id=0)([TestIds.IDS, {"chosen_ids": [1]}])


def shared_file(name):
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"no {name} in shared/data beside the checkout")
    return path


class TestRealData:
    def test_hh_rlhf(self, tokenizer):
        with gzip.open(shared_file("hh-rlhf-harmless-base-test.jsonl.gz"), "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line, _ in zip(file, range(200), strict=False)]
        dataset, dropped = prepare_dataset(Dataset.from_list(rows), tokenizer, max_length=1500)
        assert dropped.counts()["rows"] == 200 and dropped.counts()["kept"] == len(dataset) > 150
        assert dropped.counts()["too_long"] == 200 - len(dataset) - dropped.counts()["identical"]
        by_text = {(row["chosen"], row["rejected"]) for row in rows}
        for row in dataset:
            texts = tuple(text(row, side, tokenizer) for side in SIDES)
            assert tuple(whole.removesuffix("<eos>") for whole in texts) in by_text
            prompts = {parts(row, side, tokenizer)[0] for side in SIDES}
            assert len(prompts) == 1 and prompts.pop().endswith("\n\nAssistant:")
            kept = [
                [i for i, edited in zip(row[f"{side}_ids"], row[f"{side}_edit_mask"], strict=True) if not edited]
                for side in SIDES
            ]
            assert kept[0] == kept[1]

    def test_qa_feedback_spans(self, tokenizer):
        with gzip.open(shared_file("qa-feedback-dev.json.gz"), "rt", encoding="utf-8") as file:
            answers = json.load(file)[:60]
        rows = [
            {
                "prompt": f"Question: {answer['question']}\nAnswer: ",
                "chosen": answer["feedback"]["corrected-prediction"],
                "rejected": answer["prediction 1"],
                "rejected_spans": answer["feedback"]["errors"],
            }
            for answer in answers
        ]
        # Left as it was by its annotator, an answer without errors has nothing to teach.
        taught = [row for row in rows if row["rejected_spans"] or row["chosen"] != row["rejected"]]
        dataset, dropped = prepare_dataset(Dataset.from_list(rows), tokenizer)
        assert dropped.counts()["kept"] == len(dataset) == len(taught) > 50
        for row, source in zip(dataset, taught, strict=True):
            marked = "".join(text(row, "rejected", tokenizer, "edit_mask").split())
            spans = sorted((span["start"], span["end"]) for span in source["rejected_spans"])
            words = "".join("".join(source["rejected"][start:end].split()) for start, end in spans)
            # Spans that begin or end within a token mark all of it, and some spans overlap.
            assert len(marked) >= len(words) - 3 * len(spans) and set(words) <= set(marked)
            for start, end in spans:
                assert "".join(source["rejected"][start:end].split()) in marked
