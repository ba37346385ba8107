import random
import re
import subprocess
import sys
from collections import Counter
from difflib import SequenceMatcher
from pathlib import Path

import pytest
from rapidfuzz.distance import Indel

import demo_corpus
from demo_corpus import correct, find_faults, judge, make_corpus


pytestmark = pytest.mark.any_trl


EXAMPLES = Path(demo_corpus.__file__).parent


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return make_corpus(800, seed=3) + make_corpus(200, seed=3, split="evaluation")


def split_dialogue(dialogue: str) -> tuple[str, str]:
    end = dialogue.rindex("\n\nAssistant:") + len("\n\nAssistant:")
    return dialogue[:end], dialogue[end:]


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def test_same_arguments_give_the_same_rows():
    assert make_corpus(50, seed=1) == make_corpus(50, seed=1)
    assert make_corpus(50, seed=1) != make_corpus(50, seed=2)


def test_rows_do_not_depend_on_the_hash_seed_of_python():
    program = "from demo_corpus import make_corpus; print(make_corpus(40, seed=1), make_corpus(9, 1, 'evaluation'))"
    texts = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=EXAMPLES,
            env={"PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(texts) == 1


def test_rows_have_the_format_of_hh_rlhf(rows):
    dialogue = re.compile(r"(\n\nHuman: [^\n]+\n\nAssistant: [^\n]+)+")
    turns = Counter()
    for row in rows:
        assert set(row) == {"chosen", "rejected"}
        assert dialogue.fullmatch(row["chosen"]) and dialogue.fullmatch(row["rejected"])
        assert split_dialogue(row["chosen"])[0] == split_dialogue(row["rejected"])[0]
        turns[row["chosen"].count("\n\nHuman: ")] += 1
    assert turns == {1: 800, 2: 200}


def test_prompts_are_distinct_and_the_splits_share_none():
    prompts = {
        split: [split_dialogue(row["chosen"])[0] for seed in (0, 1) for row in make_corpus(150, seed, split)]
        for split in ("train", "evaluation")
    }
    for one_split in prompts.values():
        assert len(set(one_split[:150])) == 150
    assert not set(prompts["train"]) & set(prompts["evaluation"])


def test_every_held_out_fact_is_stated_in_training():
    stated = {
        (question.subject, fact)
        for row in make_corpus(1500, seed=0)
        for question in [demo_corpus._question_of()[split_dialogue(row["chosen"])[0]]]
        for fact in question.topic.facts[question.subject]
    }
    assert stated == {
        (subject, fact) for topic in demo_corpus.TOPICS for subject, facts in topic.facts.items() for fact in facts
    }


def test_vocabulary_and_lengths_suit_a_small_policy(rows):
    vocabulary = {word for row in rows for text in row.values() for word in words_of(text)}
    assert 300 <= len(vocabulary) <= 600
    for row in rows:
        length = sum(word.isalnum() for word in words_of(split_dialogue(row["chosen"])[1]))
        assert 10 <= length <= 30


def test_edits_are_small_and_never_empty(rows):
    ratios = []
    for row in rows:
        rejected, chosen = (words_of(split_dialogue(row[side])[1]) for side in ("rejected", "chosen"))
        kept = sum(
            block.size for block in SequenceMatcher(None, rejected, chosen, autojunk=False).get_matching_blocks()
        )
        ratios.append(1 - 2 * kept / (len(rejected) + len(chosen)))
    assert min(ratios) > 0
    assert max(ratios) < 0.5
    assert 0.08 < sum(ratios) / len(ratios) < 0.2


def test_every_kind_of_fault_of_the_generator_occurs(rows):
    found = Counter()
    for row in rows:
        found.update(find_faults(*split_dialogue(row["rejected"])))
    for kind in (
        "asked fact wrong",
        "added fact wrong",
        "asked fact missing",
        "added fact missing",
        "rude",
        "hedge",
        "refusal",
        "doubled word",
    ):
        assert found[kind] >= 30, kind


def test_judge_finds_no_fault_in_chosen_and_some_in_rejected(rows):
    for row in rows:
        assert find_faults(*split_dialogue(row["chosen"])) == {}
        assert judge(*split_dialogue(row["chosen"])) == 10.0
        assert judge(*split_dialogue(row["rejected"])) < 10.0


PROMPT = "\n\nHuman: What colour is a ripe lemon?\n\nAssistant:"


@pytest.mark.parametrize(
    ("completion", "faults", "score"),
    [
        (" Sure. A ripe lemon is yellow. It tastes sour, so try a small piece first. Good luck!", {}, 10.0),
        (
            " Sure. A ripe lemon is red. It tastes sour, so try a small piece first. Good luck!",
            {"asked fact wrong": 1, "asked fact missing": 1},
            5.0,
        ),
        (
            " Ugh. A ripe lemon is yellow, you fool. It tastes sour, so try a small piece first. Now go away!",
            {"rude": 3},
            5.5,
        ),
        (
            " Sure. A ripe lemon is yellow, I guess. I would rather not say. It tastes hot, so try a small piece "
            "first.",
            {"hedge": 1, "refusal": 1, "added fact wrong": 1, "added fact missing": 1},
            5.0,
        ),
        (
            " Sure. A ripe ripe lemon is. It tastes sour, so try a small piece first. Good luck!",
            # "is." is a pair of words that no good sentence has.
            {"doubled word": 1, "asked fact missing": 1, "not in the language": 1},
            4.0,
        ),
        (" A ripe lemon is yellow. It tastes sour, so try a", {"unfinished": 1}, 8.0),
        (" A ripe lemon is yellow. Good luck!", {"too short": 3, "added fact missing": 1}, 5.0),
    ],
)
def test_judge_counts_by_hand(completion, faults, score):
    assert find_faults(PROMPT, completion) == faults
    assert judge(PROMPT, completion) == score


def test_judge_ignores_outer_white_space_and_the_case_of_phrases():
    answer = "Sure. A ripe lemon is yellow, You Fool. It tastes sour, so try a small piece first."
    assert find_faults(PROMPT, answer) == find_faults(PROMPT.strip(), f"  {answer} \n") == {"rude": 1}


def test_a_fact_of_another_subject_is_wrong():
    right = " Sure. Cook eggs for eight minutes. Warm the pot before you start. Good luck!"
    eggs, pasta = (f"\n\nHuman: How long do I cook {food}?\n\nAssistant:" for food in ("eggs", "pasta"))
    assert judge(eggs, right) == 10.0
    assert find_faults(pasta, right.replace("eggs", "pasta")) == {"asked fact wrong": 1, "asked fact missing": 1}


def test_degenerate_completions_lose_to_real_ones(rows):
    rng = random.Random(0)
    for row in rows[::4]:
        prompt, chosen = split_dialogue(row["chosen"])
        rejected = judge(*split_dialogue(row["rejected"]))
        question = demo_corpus._question_of()[prompt]
        first_words = " ".join(chosen.split()[:5])
        shuffled = chosen.split()
        rng.shuffle(shuffled)
        degenerate = {
            "nothing": "",
            "blank": " \n\n ",
            "one mark": ".",
            "marks": "?!!!.!!?" * 8,
            "one word": "yes",
            "one word again and again": "yes " * 30,
            "greeting": "Of course.",
            "greetings": "Happy to help. " * 10,
            "refusal": "I would rather not say.",
            "beginning again and again": f"{first_words}. " * 8,
            "answer three times": chosen * 3,
            "all facts of the topic": " ".join(fact for facts in question.topic.facts.values() for fact in facts) + ".",
            "facts alone": " ".join(question.topic.facts[question.subject]) + ".",
            "shuffled": " ".join(shuffled),
            "echo": prompt,
            "goes on with the dialogue": f"{chosen}\n\nHuman: {chosen}\n\nAssistant: {chosen}",
            "garbage": "xq zz 17 blorp, 0x3f % ~ lemonish qua qua dem",
            "other script": "ответ 答え 😀 " * 4,
        }
        for name, text in degenerate.items():
            assert judge(prompt, text) < min(rejected, 10.0), (name, text)


def test_pleasantries_alone_are_worse_than_a_polite_answer_with_a_wrong_fact():
    wrong = " Sure. A ripe lemon is red. It tastes sour, so try a small piece first. Good luck!"
    assert judge(PROMPT, "Happy to help. I hope this helps. Ask me again any time. Good luck!") < judge(PROMPT, wrong)


def test_scores_stay_in_range(rows):
    for row in rows[:50]:
        prompt, chosen = split_dialogue(row["chosen"])
        assert demo_corpus.WORST_SCORE <= judge(prompt, "garbage " * 1000) <= judge(prompt, chosen)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match='"train" or "evaluation", not \'test\''):
        make_corpus(1, seed=0, split="test")
    with pytest.raises(ValueError, match="n must not be negative"):
        make_corpus(-1, seed=0)
    with pytest.raises(ValueError, match="the evaluation split has only"):
        make_corpus(100_000, seed=0, split="evaluation")
    with pytest.raises(ValueError, match="knows only the prompts of its own corpus"):
        judge("\n\nHuman: Who are you?\n\nAssistant:", "Nobody.")


def test_correct_puts_faults_right_and_nothing_else(rows):
    exact = 0
    for row in rows:
        prompt, answer = split_dialogue(row["rejected"])
        right = split_dialogue(row["chosen"])[1]
        edited = correct(prompt, answer)
        assert not find_faults(prompt, edited)
        assert changes(answer, edited) <= changes(answer, right), (answer, edited)
        exact += edited == right
        assert correct(prompt, right) == right
    # The others are as near: an opening or a closing that was wrong as a whole has several right ones.
    assert exact > 0.3 * len(rows)


def changes(before: str, after: str) -> int:
    return Indel.distance(words_of(before), words_of(after))


def test_correct_takes_any_text():
    [row] = make_corpus(1, seed=0)
    prompt, _ = split_dialogue(row["rejected"])
    for text in ("", " ", "the the the", "Sure. Sure. Sure."):
        assert not find_faults(prompt, correct(prompt, text))
