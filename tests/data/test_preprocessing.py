import copy
import gzip
import json
from types import SimpleNamespace

import pytest
from datasets import Dataset, IterableDataset, Value
from tokenizers import AddedToken
from tokenizers.processors import ByteLevel, TemplateProcessing
from trl import RewardTrainer

from preference_cases import CHAT_TEMPLATE, CHOSEN, DIALOGUE, FORMATS, IDS, PROMPT, REJECTED, assistant, prepare, user
from shared_data import shared_file
from tiny import tokenizer as make_tokenizer
from trl_tokenreward.data.collator import DataCollatorForTokenReward
from trl_tokenreward.data.formats import SIDES, Messages, answered_text, prompt_text
from trl_tokenreward.data.preprocessing import RowPreparer, prepare_dataset
from trl_tokenreward.utils.messages import without_none


def with_bos(tokenizer):
    """The tokenizer puts `<unk>` before and after every text by itself, as Llama's does with its BOS."""
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unk> $A <unk>", special_tokens=[("<unk>", tokenizer.unk_token_id)]
    )
    return tokenizer


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

    def test_an_eos_that_the_tokenizer_adds_is_there_once(self):
        tokenizer = make_tokenizer("bpe")
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<unk> $A <eos>", special_tokens=[("<unk>", 2), ("<eos>", 1)]
        )
        row = prepare_one(FORMATS["standard"], tokenizer)
        assert parts(row, "chosen", tokenizer) == ("<unk>" + PROMPT, CHOSEN + "<eos>")

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

    @pytest.mark.parametrize(
        ("chosen", "rejected", "marked"), [("Yes", "No", ("Yes", "No")), (" Yes", " No", ("Yes", "No"))]
    )
    def test_a_special_token_that_takes_white_space_is_the_prompts(self, chosen, rejected, marked, tokenizer):
        tokenizer = copy.deepcopy(tokenizer)
        names = ("<|user|>", "<|assistant|>", "<|end|>")
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [AddedToken(name, rstrip=True, special=True) for name in names]}
        )
        tokenizer.chat_template = (
            "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
        )
        pair = {"prompt": [user("Hi?")], "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}
        row = prepare_one(pair, tokenizer)
        assert edits(row, tokenizer) == marked
        assert parts(row, "chosen", tokenizer)[1].strip() == f"{marked[0]}<|end|>"

    def test_messages_that_differ_in_fields_of_none_are_the_same(self, tokenizer):
        extra = {"name": None, "tool_calls": [{"function": {"arguments": {"a": 1, "b": None}}}]}
        other = {"tool_calls": [{"function": {"arguments": {"a": 1}}}]}
        row = {
            "chosen": [user("how was it?") | extra, assistant(CHOSEN) | extra],
            "rejected": [user("how was it?") | other, assistant(REJECTED)],
        }
        prepared = RowPreparer("conversational", tokenizer)(row, 0)
        assert parts(prepared, "chosen", tokenizer)[0] == "<user>how was it?<eos>\n<assistant>"

    def test_what_other_rows_have_in_messages_and_tools_is_not_rendered(self, tokenizer):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = (
            "{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
            "{% for call in m.tool_calls or [] %}{{ call | tojson }}{% endfor %}<eos>{% endfor %}"
        )

        def calls(name="w", **arguments):
            return {"tool_calls": [{"name": name, "arguments": arguments}]}

        def row(**arguments):
            tools = [{"name": "w", "properties": {name: {"type": "string"} for name in arguments}}]
            prompt = [assistant(None) | calls(**arguments), user("how was it?")]
            answers = [assistant("") | calls(name, **arguments) for name in "wv"]
            return {"prompt": prompt, "chosen": answers[:1], "rejected": answers[1:], "tools": tools}

        rows = [row(city="Rome"), row(day="Monday")]
        dataset, alone = Dataset.from_list(rows), [prepare_one(row, tokenizer) for row in rows]
        assert prepare(rows, tokenizer).to_list() == alone
        prompt = '{"name": "w", "properties": {"city": {"type": "string"}}}<assistant>'
        prompt += '{"name": "w", "arguments": {"city": "Rome"}}<eos><user>how was it?<eos>'
        assert parts(alone[0], "chosen", tokenizer)[0] == prompt
        assert [prompt_text(row, tokenizer) for row in dataset] == [prompt_text(row, tokenizer) for row in rows]
        judged = [answered_text(Messages(row["prompt"], row), "So.", tokenizer) for row in dataset]
        assert judged == [answered_text(Messages(row["prompt"], row), "So.", tokenizer) for row in rows]

    def test_an_answer_continues_what_the_prompt_began(self, tokenizer):
        prompt = [user("how was it?"), assistant("Well, I")]
        row = {"prompt": prompt, "chosen": [assistant(" like it.")], "rejected": [assistant(" hate it.")]}
        prepared = prepare_one(row, tokenizer)
        assert parts(prepared, "chosen", tokenizer) == (
            "<user>how was it?<eos>\n<assistant>Well, I",
            " like it.<eos>\n",
        )
        assert edits(prepared, tokenizer) == ("like", "hate")
        with pytest.raises(
            ValueError, match="Row 0 of the train data set, column `prompt`: ends in a message of the ass"
        ):
            prepare_one({**row, "prompt": [user("a"), assistant(None)]}, tokenizer)

    def test_the_transform_of_a_data_set_is_applied(self, tokenizer):
        def upper(batch):
            return {name: [text.upper() for text in batch[name]] for name in ("prompt", *SIDES)} | {
                "margin": [0.5] * len(batch["prompt"])
            }

        dataset = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c", "other": 1}]).with_transform(
            upper
        )
        rows, _ = prepare_dataset(dataset, tokenizer)
        assert tokenizer.decode(rows[0]["chosen_ids"]) == "A B<eos>" and rows[0]["margin"] == 0.5
        torch_format = Dataset.from_list([IDS]).with_format("torch")
        assert prepare_dataset(torch_format, tokenizer)[0][0]["chosen_ids"] == IDS["chosen_ids"]

    def test_arguments_of_other_rows_are_not_given_to_the_template(self, tokenizer):
        row = FORMATS["conversational"]
        arguments = {"thinking": True, "style": {"tone": 1}}, {"style": {"length": 1}}
        rows = [{**row, "chat_template_kwargs": kwargs} for kwargs in arguments]
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = "{% if thinking is defined %}<think>{% endif %}{{ style | tojson }}" + CHAT_TEMPLATE
        begins = [text(one, "chosen", tokenizer).partition("<user>")[0] for one in prepare(rows, tokenizer)]
        assert begins == ['<think>{"tone": 1}', '{"length": 1}']

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

    @pytest.mark.parametrize(
        ("chosen", "rejected", "marked"),
        [
            ("<b>lousy</b>", "<b>terrific</b>", ("lousy", "terrific")),
            ("<thin>lousy", "<thing>lousy", ("thin", "thing")),
            ("<b>lousy", "It was lousy", ("<b>", "It was")),
            ("<think>\nlousy", "<think>\nterrific", ("lousy", "terrific")),
        ],
    )
    def test_an_answer_that_begins_as_the_opening_of_one_to_come(self, chosen, rejected, marked, tokenizer):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = CHAT_TEMPLATE.replace("<think>", "<think>\n")
        row = {"prompt": [user("how?")], "chat_template_kwargs": {"thinking": True}}
        pair = prepare_one(row | {"chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}, tokenizer)
        opening = "<think>\n" if chosen.startswith("<think>\n") else ""
        prompt = f"<user>how?<eos>\n<assistant>{opening}"
        assert parts(pair, "chosen", tokenizer) == (prompt, f"{chosen.removeprefix(opening)}<eos>\n")
        assert edits(pair, tokenizer) == marked
        if not opening:
            spans = [[rejected.index(marked[1]), len(rejected)]]
            one = prepare_one(row | {"completion": [assistant(rejected)], "completion_spans": spans}, tokenizer)
            assert text(one, "rejected", tokenizer, "edit_mask") == rejected[spans[0][0] :]

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

    @pytest.mark.parametrize(
        ("row", "more"),
        [
            (FORMATS["standard"], {"rejected_spans": [[1, 5]]}),
            (FORMATS["standard-implicit"], {"prompt": "a"}),
            (FORMATS["conversational-implicit"], {"prompt": [user("a")]}),
            (FORMATS["dialogue"], {"chat_template_kwargs": {"thinking": True}}),
            (IDS, {"chosen_edit_mask": [1, 0, 0, 0], "rejected_edit_mask": [0, 0, 1]}),
        ],
        ids=lambda columns: ", ".join(columns),
    )
    def test_what_a_pair_lacks_and_others_have(self, row, more, tokenizer):
        """As without the others, in whatever order."""
        rows = [row, {**row, **more}]
        alone = [prepare_one(row, tokenizer) for row in rows]
        table = [{**dict.fromkeys(more), **row} for row in rows]
        assert [without_none(row) for row in prepare(table, tokenizer)] == [without_none(row) for row in alone]
        assert prepare(table[::-1], tokenizer).to_list() == prepare(table, tokenizer).to_list()[::-1]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_margins_that_some_pairs_lack(self, streaming, tokenizer):
        rows = [FORMATS["standard"], {**FORMATS["standard"], "margin": 2.5}]
        dataset = Dataset.from_list([{"margin": None, **row} for row in rows])
        dataset = IterableDataset.from_generator(lambda: iter(rows)) if streaming else dataset
        prepared = list(prepare_dataset(dataset, tokenizer)[0])
        assert [row["margin"] for row in prepared] == [None, 2.5]
        assert DataCollatorForTokenReward(pad_token_id=0)(prepared)["margin"].tolist() == [0, 2.5]


class TestIds:
    def test_ids_alone_are_aligned(self, tokenizer):
        row = prepare_one(IDS, tokenizer)
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

    def test_padding_is_dropped(self, tokenizer):
        padded = {
            "chosen_ids": [5, 6, 7, 9, 0],
            "rejected_ids": [0, 5, 8, 9, 0],
            "chosen_attention_mask": [1, 1, 1, 1, 0],
            "rejected_attention_mask": [0, 1, 1, 1, 0],
            "chosen_completion_mask": [0, 1, 1, 1, 0],
            "rejected_completion_mask": [0, 0, 1, 1, 0],
        }
        row = prepare_one(padded, tokenizer)
        assert (row["chosen_ids"], row["rejected_ids"]) == ([5, 6, 7, 9], [5, 8, 9])
        assert (row["chosen_completion_mask"], row["rejected_edit_mask"]) == ([0, 1, 1, 1], [0, 1, 0])
        assert not any("attention" in column for column in row)

    def test_edit_masks_are_used_as_they_are(self, tokenizer):
        row = {**IDS, "chosen_edit_mask": [1, 0, 0, 0], "rejected_edit_mask": [0, 0, 1]}
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
