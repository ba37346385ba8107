"""The prompts of PPO: what the reward model is trained with, and what is refused before training."""

import copy
import logging

import pytest
from datasets import Dataset, IterableDataset
from tokenizers.processors import TemplateProcessing

import tiny
from ppo_scenario import prompts
from preference_cases import CHAT_TEMPLATE, FORMATS, assistant, user
from tiny import EOS, PAD, A, B, C
from trl_tokenreward.data.dropped import DroppedRows
from trl_tokenreward.data.formats import SIDES
from trl_tokenreward.data.preprocessing import prepare_dataset
from trl_tokenreward.ppo.prompts import REMEDIES, prepare_prompts


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = tiny.tokenizer("bpe")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def prepared(rows, tokenizer, streaming=False, **kwargs):
    dataset = Dataset.from_list(rows)
    return list(prepare_prompts(dataset.to_iterable_dataset() if streaming else dataset, tokenizer, "train", **kwargs))


def decoded(row, tokenizer):
    [row] = prepared([row], tokenizer)
    return tokenizer.decode(row["input_ids"])


PAIRS = {
    **{name: FORMATS[name] for name in ("standard", "dialogue", "conversational", "conversational-implicit")},
    "tools": {
        **FORMATS["conversational"],
        "tools": [{"type": "function", "function": {"name": "oven"}}],
        "chat_template_kwargs": {"thinking": False},
    },
    "prefilled": {
        "prompt": [user("how was it?"), assistant("Well, I")],
        **{side: [assistant(f" {word} it.")] for side, word in zip(SIDES, ("like", "hate"), strict=True)},
    },
    "fields-of-none": {
        "chosen": [user("how was it?") | {"name": None}, assistant("good") | {"name": None}],
        "rejected": [user("how was it?"), assistant("bad")],
    },
}


@pytest.mark.parametrize("around", ["$A", "<unk> $A", "<unk> $A <eos>"])
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("column", ["", "prompt"])
def test_prompts_are_those_of_the_reward_model(name, column, around, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    special = [("<unk>", tokenizer.unk_token_id), ("<eos>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=around, special_tokens=special)
    pair = PAIRS[name]
    row = prepare_dataset(Dataset.from_list([pair]), tokenizer)[0][0]
    of_reward_model = row["chosen_ids"][: row["chosen_completion_mask"].index(1)]
    if column:  # the prompt alone
        if "prompt" not in pair:
            pytest.skip("the prompt is inside both sides")
        pair = {column: pair[column] for column in ("prompt", "tools", "chat_template_kwargs") if column in pair}
    assert prepared([pair], tokenizer)[0]["input_ids"] == of_reward_model


def test_the_last_message_of_the_assistant_is_left_open(tokenizer):
    prompt = PAIRS["prefilled"]["prompt"]
    assert decoded({"prompt": prompt}, tokenizer) == "<user>how was it?<eos>\n<assistant>Well, I"


def test_a_text_from_a_chat_template_has_one_bos(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 2)])
    assert decoded({"prompt": "<unk><user>hi<eos>"}, tokenizer) == "<unk><user>hi<eos>"
    assert decoded({"prompt": "hi"}, tokenizer) == "<unk>hi"


def test_tokens_are_taken_as_they_are():
    words = tiny.word_tokenizer()
    assert [row["input_ids"] for row in prepare_prompts(prompts([A, B], [C]), words, "train")] == [[A, B], [C]]
    torch_format = prompts([A, B]).with_format("torch")
    assert prepare_prompts(torch_format, words, "train")[0]["input_ids"] == [A, B]


@pytest.mark.parametrize("streaming", [False, True])
def test_padding_is_no_part_of_a_prompt(streaming):
    words = tiny.word_tokenizer()
    padded = [
        {"input_ids": [PAD, PAD, A], "attention_mask": [0, 0, 1], "topic": "x"},
        {"input_ids": [B, EOS, PAD], "attention_mask": [1, 1, 0], "topic": "y"},
    ]
    rows = prepared(padded, words, streaming)
    assert rows == [{"input_ids": [A], "topic": "x"}, {"input_ids": [B, EOS], "topic": "y"}]
    assert prepared(rows, words, streaming) == rows  # preparing again changes nothing
    for ids in ([PAD, A], [A, PAD]):
        with pytest.raises(ValueError, match="Row 1 of the train data set, column `input_ids`: has the pad token 0 at"):
            prepared([{"input_ids": [A]}, {"input_ids": ids}], words, streaming)
    as_eos = tiny.word_tokenizer(pad_token="<eos>")  # it may end a turn
    assert prepared([{"input_ids": [A, EOS]}], as_eos, streaming)[0]["input_ids"] == [A, EOS]


def test_the_transform_of_a_data_set_is_applied(tokenizer):
    def ask(batch):
        return {"prompt": [f"{word}?" for word in batch["word"]], "topic": [word.upper() for word in batch["word"]]}

    dataset = Dataset.from_list([{"word": "fox"}]).with_transform(ask)
    [row] = prepare_prompts(dataset, tokenizer, "train")
    assert tokenizer.decode(row["input_ids"]) == "fox?" and row["topic"] == "FOX"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}], "needs a column 'prompt' or 'input_ids'.*'text'"),
        (
            [{"prompt": "a"}, {"prompt": None}],
            "Row 1 of the train data set, column `prompt`: the prompt must be a text",
        ),
        ([{"prompt": "a"}, {"prompt": ""}], "Row 1 of the train data set, column `prompt`: the prompt must be a text"),
        ([{"prompt": [user("a")]}, {"prompt": []}], "Row 1 of the train data set, column `prompt`: the prompt must"),
        ([{"prompt": [{"content": "a"}]}], "Row 0 of the train data set, column `prompt`: messages need `role`"),
        (
            [{"prompt": [user("a")]}, {"prompt": [user("bad")]}],
            "Row 1 of the train data set, column `prompt`: the chat template cannot render it: this is bad",
        ),
        (
            [{"prompt": [user("a")], "chat_template_kwargs": "thinking"}],
            "Row 0 of the train data set, column `chat_template_kwargs`: must be a dictionary",
        ),
        ([{"prompt": [user("a")], "tools": "[bake"}], "Row 0 of the train data set, column `tools`: is no JSON"),
        ([{"input_ids": [5]}, {"input_ids": []}], "Row 1 of the train data set, column `input_ids`: has no tokens"),
        ([{"input_ids": [5, 300]}], "Row 0 of the train data set, column `input_ids`: has the id 300"),
        ([{"input_ids": [5], "attention_mask": [0]}], "Row 0 of the train data set, column `input_ids`: has no tokens"),
        ([{"input_ids": [5], "attention_mask": [1, 1]}], "column `attention_mask`: has 2 entries for 1 token ids"),
        ([{"chosen": [user("a")], "rejected": 3}], "Row 0 of the train data set, column `rejected`"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_bad_prompts_are_named_by_row_and_column(rows, message, streaming, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% if messages[0].content == 'bad' %}{{ raise_exception('this is bad') }}{% endif %}" + CHAT_TEMPLATE
    )
    with pytest.raises(ValueError, match=message):
        prepared(rows, tokenizer, streaming)


def test_half_a_character_is_no_prompt(tokenizer):
    rows = IterableDataset.from_generator(lambda: iter([{"prompt": "a"}, {"prompt": "go\ud83d"}]))
    with pytest.raises(ValueError, match="Row 1 of the train data set, column `prompt`: has half of a character"):
        list(prepare_prompts(rows, tokenizer, "train"))


class TestMaxPromptLength:
    ROWS = ([A], [A, B], [A, B, C])

    @pytest.mark.parametrize("streaming", [False, True])
    def test_longer_prompts_are_dropped_and_counted(self, streaming):
        dropped, dataset = DroppedRows(REMEDIES), prompts(*self.ROWS)
        rows = [{"input_ids": ids} for ids in dataset["input_ids"]]
        kept = prepared(rows, tiny.word_tokenizer(), streaming, max_prompt_length=2, dropped=dropped)
        assert [row["input_ids"] for row in kept] == [[A], [A, B]]
        assert dropped.counts() == {"rows": 3, "kept": 2, "too_long": 1}

    def test_nothing_is_left(self):
        with pytest.raises(ValueError, match="Nothing is left of the train data set.*raise `max_prompt_length`"):
            prepare_prompts(prompts([A, B]), tiny.word_tokenizer(), "train", max_prompt_length=1)

    def test_the_trainer_reports_what_it_drops(self, scenario, caplog):
        sets = {"one": prompts([A], [A, B, C]), "two": prompts([A])}
        with caplog.at_level(logging.WARNING):
            trainer = scenario.make(dataset=prompts(*self.ROWS), eval_dataset=sets, max_prompt_length=2)
        assert trainer.dropped == {
            "train": {"rows": 3, "kept": 2, "too_long": 1},
            "eval_one": {"rows": 2, "kept": 1, "too_long": 1},
            "eval_two": {"rows": 1, "kept": 1, "too_long": 0},
        }
        trainer.evaluate()
        trainer.evaluate(prompts([A], [A, B, C]))
        assert trainer.dropped["eval"]["too_long"] == trainer.dropped["eval_one"]["too_long"] == 1

    def test_a_stream_logs_what_it_drops(self, scenario):
        trainer = scenario.train(dataset=prompts(*self.ROWS).to_iterable_dataset(), max_prompt_length=2)
        logs = [log["dropped/too_long"] for log in trainer.state.log_history if "dropped/too_long" in log]
        assert logs and logs[-1] > 0

    def test_a_prompt_without_room_is_refused_before_training(self, scenario):
        long = [A] * 125
        with pytest.raises(ValueError, match="row 1 of the train data set of 125 tokens.*set `max_prompt_length=124`"):
            scenario.make(dataset=prompts([A], long))
        with pytest.raises(ValueError, match="row 0 of the eval data set of 125 tokens"):
            scenario.make(dataset=prompts([A]), eval_dataset=prompts(long))
        assert len(scenario.make(dataset=prompts([A], long), max_prompt_length=124).train_dataset) == 1
