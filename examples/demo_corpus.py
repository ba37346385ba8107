"""A small corpus of dialogues with minimal edits, in HH-RLHF's own format, and a judge that knows what is right in it.

Each row is `{"chosen": ..., "rejected": ...}`, whole dialogues of the form `"\\n\\nHuman: ...\\n\\nAssistant: ..."`,
some of them with two turns. A person asks for one fact about an everyday subject; the answer opens, states that fact,
adds a second one and closes. `rejected` goes wrong at a few places (a wrong fact, a rude remark, a hedge, a refusal, a
word doubled or left out) and `chosen` is the same answer with those places put right and nothing else touched.

The facts stand in tables, so that [`judge`] can tell right from wrong for any text that a policy writes. It is the gold
standard of the demo: nothing that is trained ever sees it.

Run as a script, it writes the corpus to `train.jsonl` and `test.jsonl` in a folder:

    python examples/demo_corpus.py --output pairs
"""

import argparse
import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple


@dataclass(frozen=True, eq=False)
class Topic:
    """A kind of subject about which two facts are known. Every template field holds one tuple for each of the facts.

    Args:
        facts (`dict[str, tuple[str, str]]`):
            Subject to its two facts, each a single word. The words that occur in one place over all subjects are the
            closed set from which a wrong answer takes its word.
        questions (`tuple[tuple[str, ...], tuple[str, ...]]`):
            Ask for the fact and name the `{subject}`.
        follow_ups (`tuple[tuple[str, ...], tuple[str, ...]]`):
            Ask for the fact after a turn that named the subject.
        statements (`tuple[tuple[str, ...], tuple[str, ...]]`):
            State the `{fact}` of the `{subject}`.
        additions (`tuple[tuple[str, ...], tuple[str, ...]]`):
            State the `{fact}` after a sentence that named the subject.
    """

    facts: dict[str, tuple[str, str]]
    questions: tuple[tuple[str, ...], tuple[str, ...]]
    follow_ups: tuple[tuple[str, ...], tuple[str, ...]]
    statements: tuple[tuple[str, ...], tuple[str, ...]]
    additions: tuple[tuple[str, ...], tuple[str, ...]]


class Question(NamedTuple):
    """What a prompt asks: a fact (0 or 1) of a subject of a topic."""

    topic: Topic
    subject: str
    asked: int


class Segment(NamedTuple):
    """A stretch of an answer as it should be and as it was written; the two differ where the answer goes wrong."""

    right: str
    written: str


FOOD = Topic(
    facts={
        "lemon": ("yellow", "sour"),
        "banana": ("yellow", "sweet"),
        "cherry": ("red", "sweet"),
        "radish": ("red", "hot"),
        "lime": ("green", "sour"),
        "cucumber": ("green", "mild"),
        "carrot": ("orange", "sweet"),
        "grapefruit": ("pink", "bitter"),
    },
    questions=(
        (
            "What colour is a ripe {subject}?",
            "Which colour should a {subject} have?",
            "I forgot the colour of a {subject}.",
            "Can you tell me the colour of a {subject}?",
        ),
        (
            "How does a {subject} taste?",
            "What taste does a {subject} have?",
            "I wonder how a {subject} tastes.",
            "Can you describe the taste of a {subject}?",
        ),
    ),
    follow_ups=(
        ("And what colour is it?", "Which colour does it have?"),
        ("And how does it taste?", "What is the taste?"),
    ),
    statements=(
        ("A ripe {subject} is {fact}.", "The colour of a {subject} is {fact}.", "A good {subject} looks {fact}."),
        ("A {subject} tastes {fact}.", "The taste of a {subject} is {fact}.", "Most people find a {subject} {fact}."),
    ),
    additions=(
        ("It is {fact} on the outside.", "Look in the shop for one that is {fact}."),
        ("It tastes {fact}, so try a small piece first.", "The taste is {fact}, and many people like it."),
    ),
)

TOOLS = Topic(
    facts={
        "drive a nail": ("hammer", "garage"),
        "cut a board": ("saw", "garage"),
        "dig a hole": ("spade", "shed"),
        "gather the leaves": ("rake", "shed"),
        "sweep the floor": ("broom", "cupboard"),
        "clean a window": ("sponge", "cupboard"),
        "sew a button": ("needle", "drawer"),
        "slice some bread": ("knife", "drawer"),
    },
    questions=(
        (
            "Which tool do I need to {subject}?",
            "What should I use to {subject}?",
            "I want to {subject}. What do I need?",
            "Can you name the right tool to {subject}?",
        ),
        (
            "Where do we keep the tool to {subject}?",
            "Where do I find the tool to {subject}?",
            "I want to {subject}. Where do I look for the tool?",
        ),
    ),
    follow_ups=(
        ("And which tool do I need?", "What should I use?"),
        ("And where do I find the tool?", "Where do we keep it?"),
    ),
    statements=(
        ("You need a {fact} to {subject}.", "Use a {fact} to {subject}.", "The right tool to {subject} is a {fact}."),
        ("The tool to {subject} is in the {fact}.", "We keep the tool to {subject} in the {fact}."),
    ),
    additions=(
        ("Take the {fact} and work slowly.", "Hold the {fact} well and take your time."),
        ("Put it back in the {fact} when you are done.", "It belongs in the {fact} after work."),
    ),
)

TRAVEL = Topic(
    facts={
        "Paris": ("France", "French"),
        "Rome": ("Italy", "Italian"),
        "Madrid": ("Spain", "Spanish"),
        "Berlin": ("Germany", "German"),
        "Tokyo": ("Japan", "Japanese"),
        "Lisbon": ("Portugal", "Portuguese"),
        "Athens": ("Greece", "Greek"),
        "Oslo": ("Norway", "Norwegian"),
    },
    questions=(
        (
            "Which country is {subject} in?",
            "Where is {subject}?",
            "I booked a trip to {subject}. Which country is that?",
            "Can you tell me the country of {subject}?",
        ),
        (
            "Which language do people speak in {subject}?",
            "What language should I learn for {subject}?",
            "I booked a trip to {subject}. Which language will I hear?",
        ),
    ),
    follow_ups=(
        ("And which country is that?", "Where is the city?"),
        ("And which language will I hear?", "What do people speak there?"),
    ),
    statements=(
        ("{subject} is in {fact}.", "You will find {subject} in {fact}.", "The city of {subject} is in {fact}."),
        (
            "People in {subject} speak {fact}.",
            "The language of {subject} is {fact}.",
            "You will hear {fact} in {subject}.",
        ),
    ),
    additions=(
        ("It is a lovely city in {fact}.", "Bring a good map of {fact} with you."),
        ("Learn a few words of {fact} before you go.", "Most people there speak {fact}."),
    ),
)

ANIMALS = Topic(
    facts={
        "dog": ("barks", "puppy"),
        "cat": ("meows", "kitten"),
        "cow": ("moos", "calf"),
        "sheep": ("bleats", "lamb"),
        "horse": ("neighs", "foal"),
        "duck": ("quacks", "duckling"),
        "pig": ("oinks", "piglet"),
        "hen": ("clucks", "chick"),
    },
    questions=(
        (
            "What sound does a {subject} make?",
            "How does a {subject} sound?",
            "My son wants to know the sound of a {subject}.",
        ),
        (
            "What do you call a young {subject}?",
            "What is a baby {subject} called?",
            "My son wants to know the name for a young {subject}.",
        ),
    ),
    follow_ups=(
        ("And what sound does it make?", "How does it sound?"),
        ("And what is its baby called?", "What do you call its baby?"),
    ),
    statements=(
        ("A {subject} {fact}.", "We say that a {subject} {fact}.", "A grown {subject} {fact}."),
        ("A young {subject} is called a {fact}.", "We call a baby {subject} a {fact}."),
    ),
    additions=(
        ("It {fact} when it is happy.", "You can hear from far away how it {fact}."),
        ("Its baby is called a {fact}.", "It takes good care of its {fact}."),
    ),
)

GARDEN = Topic(
    facts={
        "tulip": ("autumn", "sun"),
        "snowdrop": ("autumn", "shade"),
        "sunflower": ("spring", "sun"),
        "fern": ("spring", "shade"),
        "cabbage": ("summer", "sun"),
        "foxglove": ("summer", "shade"),
        "rose": ("winter", "sun"),
    },
    questions=(
        (
            "When should I plant a {subject}?",
            "Which season is best to plant a {subject}?",
            "I want to plant a {subject}. When do I start?",
        ),
        (
            "Does a {subject} want sun or shade?",
            "Where in the garden do I put a {subject}?",
            "I have a {subject}. Where will it grow well?",
        ),
    ),
    follow_ups=(
        ("And when should I plant it?", "Which season is best?"),
        ("And where do I put it?", "Does it want sun or shade?"),
    ),
    statements=(
        (
            "Plant a {subject} in {fact}.",
            "The best season for a {subject} is {fact}.",
            "You can plant a {subject} in {fact}.",
        ),
        (
            "A {subject} grows well in the {fact}.",
            "Put a {subject} in the {fact}.",
            "The best place for a {subject} is in the {fact}.",
        ),
    ),
    additions=(
        ("Plant it in {fact} and give it some water.", "Start in {fact} and be patient."),
        ("It wants the {fact}, so choose the place well.", "It likes a quiet place in the {fact}."),
    ),
)

COOKING = Topic(
    facts={
        "eggs": ("eight", "pot"),
        "pasta": ("ten", "pot"),
        "rice": ("twelve", "pot"),
        "pancakes": ("three", "pan"),
        "mushrooms": ("five", "pan"),
        "pizza": ("twelve", "oven"),
        "bread": ("forty", "oven"),
        "spinach": ("three", "steamer"),
    },
    questions=(
        (
            "How long do I cook {subject}?",
            "For how many minutes should I cook {subject}?",
            "I want to make {subject}. How long does that take?",
        ),
        (
            "What do I cook {subject} in?",
            "I want to make {subject}. What do I need?",
            "Can you tell me what to cook {subject} in?",
        ),
    ),
    follow_ups=(
        ("And how long does that take?", "For how many minutes?"),
        ("And what do I need?", "What do I cook that in?"),
    ),
    statements=(
        (
            "Cook {subject} for {fact} minutes.",
            "You should cook {subject} for {fact} minutes.",
            "For {subject} you need {fact} minutes.",
        ),
        (
            "Cook {subject} in the {fact}.",
            "The best way to cook {subject} is in the {fact}.",
            "For {subject} you need the {fact}.",
        ),
    ),
    additions=(
        ("Wait {fact} minutes before you taste it.", "Set the clock to {fact} minutes."),
        ("Use a clean {fact} and take your time.", "Warm the {fact} before you start."),
    ),
)

TOPICS = (FOOD, TOOLS, TRAVEL, ANIMALS, GARDEN, COOKING)

GREETINGS = ("", "Hello. ", "Hi there! ", "Please help me. ", "Quick question. ")
FAREWELLS = ("", " Thank you.")

OPENINGS = ("Sure.", "Of course.", "Good question.", "Happy to help.", "Thanks for asking.")
CLOSINGS = ("I hope this helps.", "Have a nice day!", "Ask me again any time.", "Good luck!")

RUDE_OPENINGS = ("Ugh.", "What a silly question.", "Not you again.", "Everyone knows that.")
RUDE_REMARKS = (", you fool", ", you idiot", ", dummy", ", as any child knows")
RUDE_CLOSINGS = ("Now go away!", "Stop wasting my time.", "Leave me alone!", "Do not ask again.")
HEDGES = (", I guess", ", or maybe not", ", but I am not sure", ", as far as I know")
REFUSALS = ("I would rather not say.", "I cannot talk about this.", "Please ask someone else.")

# How often the written answer goes wrong at a place that can go wrong in that way, and how often at most in one answer.
WRONG_FACT = (0.35, 0.25)  # the fact asked for, the fact added
MISSING_FACT = 0.04
RUDE = 0.15
HEDGED = 0.15
REFUSED = 0.1
DOUBLED_WORD = 0.12
MAX_FAULTS = 3

MULTI_TURN_SHARE = 0.2
EVALUATION_SHARE = 0.1

Split = Literal["train", "evaluation"]


def make_corpus(n: int, seed: int, split: Split = "train") -> list[dict[str, str]]:
    """Returns `n` preference rows with distinct prompts, the same ones for the same arguments.

    The two splits share no prompt, whatever the seeds: a prompt belongs to one of them by its own hash. They share the
    facts, which a policy can only know from training.

    Args:
        n (`int`):
            Number of rows; a fifth of them has two turns.
        seed (`int`):
            Chooses the prompts, the wording and the faults.
        split (`str`, *optional*, defaults to `"train"`):
            `"train"` or `"evaluation"`, whose prompts are held out.

    Raises:
        `ValueError`: if the split is unknown or has fewer than `n` prompts to offer.
    """
    if split not in ("train", "evaluation"):
        raise ValueError(f'split must be "train" or "evaluation", not {split!r}')
    if n < 0:
        raise ValueError(f"n must not be negative, but is {n}")
    rng = random.Random(f"{split} {seed}")
    numbers = {True: int(n * MULTI_TURN_SHARE)}
    numbers[False] = n - numbers[True]
    prompts = []
    for multi_turn, number in numbers.items():
        known = [prompt for prompt in _prompts(multi_turn) if _split_of(prompt) == split]
        if number > len(known):
            raise ValueError(
                f"n={n} needs {number} prompts {'of two turns' if multi_turn else 'of one turn'}, "
                f"but the {split} split has only {len(known)}"
            )
        prompts += rng.sample(known, number)
    rng.shuffle(prompts)

    rows = []
    for prompt in prompts:
        segments = _write_answer(_question_of()[prompt], rng)
        rows.append(
            {
                "chosen": f"{prompt} {''.join(segment.right for segment in segments)}",
                "rejected": f"{prompt} {''.join(segment.written for segment in segments)}",
            }
        )
    return rows


@cache
def _question_of() -> dict[str, Question]:
    """Every prompt that the corpus can hold, up to and including its last `Assistant:`, and what it asks."""
    return {**_prompts(multi_turn=False), **_prompts(multi_turn=True)}


@cache
def _prompts(multi_turn: bool) -> dict[str, Question]:
    prompts = {}
    for topic in TOPICS:
        for subject, facts in topic.facts.items():
            for asked in (0, 1):
                if multi_turn:
                    other = 1 - asked
                    turns = [
                        f"{question}\n\nAssistant: {statement.format(subject=subject, fact=facts[other])}\n\nHuman: "
                        f"{follow_up}"
                        for question in topic.questions[other]
                        for statement in topic.statements[other]
                        for follow_up in topic.follow_ups[asked]
                    ]
                else:
                    turns = topic.questions[asked]
                for greeting in GREETINGS:
                    for turn in turns:
                        for farewell in FAREWELLS:
                            text = f"{greeting}{turn.format(subject=subject)}{farewell}"
                            prompts[f"\n\nHuman: {text}\n\nAssistant:"] = Question(topic, subject, asked)
    return prompts


def _split_of(prompt: str) -> Split:
    # Not hash(): that one differs between two runs of Python.
    fraction = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") / 2**32
    return "evaluation" if fraction < EVALUATION_SHARE else "train"


def _write_answer(question: Question, rng: random.Random) -> list[Segment]:
    """An answer with one to `MAX_FAULTS` faults."""
    while True:
        segments, faults = _draw_answer(question, rng)
        if 1 <= faults <= MAX_FAULTS:
            return segments


def _draw_answer(question: Question, rng: random.Random) -> tuple[list[Segment], int]:
    faults = 0

    def happens(probability: float) -> bool:
        nonlocal faults
        hit = rng.random() < probability
        faults += hit
        return hit

    def kept_or_doubled(text: str) -> Segment:
        """Plain words, of which one may be written twice."""
        words = list(re.finditer(r"(?<!\S)[a-z]+(?!\S)", text))
        if not words or not happens(DOUBLED_WORD):
            return Segment(text, text)
        word = rng.choice(words)
        return Segment(text, f"{text[: word.end()]} {word.group()}{text[word.end() :]}")

    def inserted(phrases: tuple[str, ...], probability: float, before: str = "") -> list[Segment]:
        return [Segment("", before + rng.choice(phrases))] if happens(probability) else []

    def replaced(right: tuple[str, ...], wrong: tuple[str, ...], probability: float) -> Segment:
        text = rng.choice(right)
        return Segment(text, rng.choice(wrong) if happens(probability) else text)

    def sentence(template: str, fact: int, wrong: float) -> list[Segment]:
        truth = question.topic.facts[question.subject][fact]
        before, after = template.removesuffix(".").replace("{subject}", question.subject).split("{fact}")
        before, after = kept_or_doubled(before), kept_or_doubled(after)
        if happens(MISSING_FACT):
            # The blank before the word goes with it; a word is missing, the spacing is as in any sentence.
            before = Segment(before.right, before.written.removesuffix(" "))
            fact_segment = Segment(truth, "")
        else:
            fact_segment = replaced((truth,), _wrong_facts(question, fact), wrong)
        return [
            before,
            fact_segment,
            after,
            *inserted(HEDGES, HEDGED),
            *inserted(RUDE_REMARKS, RUDE),
            Segment(".", "."),
        ]

    added = 1 - question.asked
    segments = [
        replaced(OPENINGS, RUDE_OPENINGS, RUDE),
        Segment(" ", " "),
        *sentence(rng.choice(question.topic.statements[question.asked]), question.asked, WRONG_FACT[0]),
        *inserted(REFUSALS, REFUSED, before=" "),
        Segment(" ", " "),
        *sentence(rng.choice(question.topic.additions[added]), added, WRONG_FACT[1]),
        Segment(" ", " "),
        replaced(CLOSINGS, RUDE_CLOSINGS, RUDE),
    ]
    return segments, faults


def _wrong_facts(question: Question, fact: int) -> tuple[str, ...]:
    """The other words of the closed set, each once, in the order of the table."""
    truth = question.topic.facts[question.subject][fact]
    return tuple(dict.fromkeys(facts[fact] for facts in question.topic.facts.values() if facts[fact] != truth))


# What each fault costs. A wrong fact in the place of the right one is two faults: the right one is missing as well.
COSTS = {
    "asked fact missing": 4.0,
    "asked fact wrong": 1.0,
    "added fact missing": 2.0,
    "added fact wrong": 0.5,
    "rude": 1.5,
    "refusal": 1.5,
    "hedge": 1.0,
    "doubled word": 1.0,
    "repetition": 0.5,
    "not in the language": 1.0,
    "unfinished": 2.0,
    "too short": 1.0,
    "too long": 0.25,
}
BEST_SCORE = 10.0
WORST_SCORE = -10.0
MIN_WORDS = 10
MAX_WORDS = 30


def judge(prompt: str, completion: str) -> float:
    """The gold score of an answer: 10 for one without fault, less the cost of each fault, and -10 at the least.

    Args:
        prompt (`str`):
            A prompt of the corpus, of either split.
        completion (`str`):
            Any text.

    Raises:
        `ValueError`: if the prompt is none of the corpus, about which the judge knows nothing.
    """
    cost = sum(COSTS[kind] * number for kind, number in find_faults(prompt, completion).items())
    return max(WORST_SCORE, BEST_SCORE - cost)


def find_faults(prompt: str, completion: str) -> Counter[str]:
    """Counts the faults of an answer by kind (the keys of `COSTS`); see [`judge`] for the arguments.

    Known phrases (rude, hedging, refusing) and doubled words are counted and then taken out, and what is left must
    consist of sentences that could stand in a good answer to this prompt: each pair of neighbouring words that none of
    those sentences has is one fault "not in the language". A sequence of three words that comes again is a repetition.
    """
    question = _question_of().get(f"\n\n{prompt.strip()}")
    if question is None:
        raise ValueError(f"the judge knows only the prompts of its own corpus; this is none of them: {prompt!r}")

    words = _words(completion)
    faults: Counter[str] = Counter()
    length = sum(word[0].isalnum() for word in words)
    faults["too short"] = max(0, MIN_WORDS - length)
    faults["too long"] = max(0, length - MAX_WORDS)
    faults["unfinished"] = int(not words or words[-1] not in SENTENCE_ENDS)

    for kind, phrases in (
        ("rude", RUDE_OPENINGS + RUDE_REMARKS + RUDE_CLOSINGS),
        ("refusal", REFUSALS),
        ("hedge", HEDGES),
    ):
        words, faults[kind] = _take_out(words, phrases)
    kept = [word for i, word in enumerate(words) if i == 0 or word.lower() != words[i - 1].lower()]
    faults["doubled word"] = len(words) - len(kept)
    triples = list(zip(kept, kept[1:], kept[2:], strict=False))
    faults["repetition"] = len(triples) - len(set(triples))
    faults["not in the language"] = sum(
        pair not in _known_pairs(question.topic, question.subject) for pair in _pairs(kept)
    )

    for fact, name in ((question.asked, "asked"), (1 - question.asked, "added")):
        faults[f"{name} fact missing"] = int(question.topic.facts[question.subject][fact] not in kept)
        faults[f"{name} fact wrong"] = sum(word in kept for word in _wrong_facts(question, fact))
    return +faults


def correct(prompt: str, completion: str) -> str:
    """The answer without its faults, by the fewest changed words: itself if the judge finds no fault, else that of all
    faultless answers to the prompt which differs from it in the fewest words. See [`judge`] for the arguments."""
    from rapidfuzz.distance import Indel

    if not find_faults(prompt, completion):
        return completion
    words = _words(completion)
    best = min(_good_answers(f"\n\n{prompt.strip()}"), key=lambda answer: Indel.distance(_words(answer), words))
    return f" {best}"


SENTENCE_ENDS = (".", "!", "?")


@cache
def _good_answers(prompt: str) -> list[str]:
    """Every answer to a prompt that [`make_corpus`] may have among its chosen ones."""
    topic, subject, asked = _question_of()[prompt]
    facts, added = topic.facts[subject], 1 - asked
    statements = [template.format(subject=subject, fact=facts[asked]) for template in topic.statements[asked]]
    additions = [template.format(subject=subject, fact=facts[added]) for template in topic.additions[added]]
    return [" ".join(parts) for parts in product(OPENINGS, statements, additions, CLOSINGS)]


def _words(text: str) -> list[str]:
    """Words and single marks; a mark is a word of its own, white space is not."""
    return re.findall(r"\w+|[^\w\s]", text)


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    """Neighbours within a sentence; its edges are neighbours too, written as the empty word."""
    pairs = []
    previous = ""
    for word in words:
        pairs.append((previous, word))
        previous = "" if word in SENTENCE_ENDS else word
    return pairs


@cache
def _known_pairs(topic: Topic, subject: str) -> frozenset[tuple[str, str]]:
    return frozenset(pair for sentence in _good_sentences(topic, subject) for pair in _pairs(_words(sentence)))


def _good_sentences(topic: Topic, subject: str) -> list[str]:
    """What a good answer about the subject can consist of, with any fact of the closed set in the fact's place."""
    return [
        *OPENINGS,
        *CLOSINGS,
        *(
            template.format(subject=subject, fact=facts[fact])
            for fact in (0, 1)
            for template in topic.statements[fact] + topic.additions[fact]
            for facts in topic.facts.values()
        ),
    ]


def _take_out(words: list[str], phrases: tuple[str, ...]) -> tuple[list[str], int]:
    """The words without the phrases (in whatever case), and how many phrases there were."""
    targets = sorted(([word.lower() for word in _words(phrase)] for phrase in phrases), key=len, reverse=True)
    lowered = [word.lower() for word in words]
    kept, found, i = [], 0, 0
    while i < len(words):
        target = next((target for target in targets if lowered[i : i + len(target)] == target), None)
        if target is None:
            kept.append(words[i])
            i += 1
        else:
            found += 1
            i += len(target)
    return kept, found


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the corpus to files, in HH-RLHF's format.")
    parser.add_argument("--output", type=Path, required=True, help="folder for train.jsonl and test.jsonl")
    parser.add_argument("--rows", type=int, default=2500, help="rows to train on (default: %(default)s)")
    parser.add_argument("--evaluation-rows", type=int, default=256, help="held-out rows (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    parts = {
        "train": make_corpus(arguments.rows, arguments.seed),
        "test": make_corpus(arguments.evaluation_rows, arguments.seed, split="evaluation"),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (arguments.output / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    print(f"{len(parts['train'])} rows to train on and {len(parts['test'])} held-out ones are in {arguments.output}.")


if __name__ == "__main__":
    main()
