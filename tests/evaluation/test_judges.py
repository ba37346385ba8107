"""Judges; the endpoint's on a local HTTP server that answers as it is told to."""

import math
import signal
import threading
import time

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

import tiny
from trl_tokenreward import EndpointJudge, RewardModelJudge, ScoringJudge, TokenRewardModel
from trl_tokenreward.editing.tasks import read_tasks
from trl_tokenreward.evaluation.judges import DEFAULT_TEMPLATE
from trl_tokenreward.evaluation.sampler import AnswerSampler


pytestmark = pytest.mark.any_trl


TEMPLATE = "{prompt}|{answer_a}|{answer_b}|[[A]] [[B]] [[TIE]]"


def longer_wins(text, number):
    _, a, b, _ = text.split("|")
    return f"Not [[TIE]], but [[{'A' if len(a) > len(b) else 'B'}]]."


@pytest.fixture
def server(serve):
    return serve(longer_wins)


def make_judge(server, **kwargs):
    kwargs = {"template": TEMPLATE, "backoff": 0.001, "retries": 2, "progress": False, **kwargs}
    return EndpointJudge(server.url, "judge-1", **kwargs)


def test_both_orders_are_asked_and_answers_are_filled_in_as_they_are(server):
    judge = make_judge(server, concurrency=1, settings={"max_tokens": 9}, api_key="sk-secret")
    # The second answer looks like a field, and the prompt is messages.
    prompts = ["p", [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]]
    assert judge(prompts, ["long", "x"], ["s", "{answer_a}"]) == [1.0, 0.0]
    texts = [body["messages"][0]["content"].removesuffix("|[[A]] [[B]] [[TIE]]") for body in server.bodies]
    second = "user: hi\n\nassistant: yes?"
    assert texts == ["p|long|s", "p|s|long", f"{second}|x|{{answer_a}}", f"{second}|{{answer_a}}|x"]
    assert all(body["model"] == "judge-1" and body["max_tokens"] == 9 for body in server.bodies)
    assert all(headers["Authorization"] == "Bearer sk-secret" for headers in server.headers_seen)


def test_the_same_verdict_on_both_orders_is_a_tie_and_equal_answers_are_not_asked_for(server):
    server.respond = lambda text, number: "[[A]]"
    judge = make_judge(server)
    assert judge(["p", "p"], ["a", "same"], ["b", "same"]) == [0.5, 0.5]
    assert len(server.bodies) == 2
    server.respond = lambda text, number: "[[A]]" if text.startswith("p|c") else "[[TIE]]"
    assert judge(["p"], ["c"], ["d"]) == [0.5]


@pytest.mark.parametrize(
    "trouble",
    [
        (429, "slow down"),
        (429, "slow down", {"Retry-After": "0"}),
        (500, "oops"),
        (503, ""),
        (200, "no json"),
        (200, "[]"),
        (200, '{"choices": []}'),
        (200, '{"choices": [{"message": {"content": null}}]}'),
        "I would rather not say.",
    ],
    ids=str,
)
def test_what_may_pass_is_asked_again(server, trouble):
    server.respond = lambda text, number: trouble if number <= 2 else longer_wins(text, number)
    judge = make_judge(server)
    assert judge(["p"], ["long"], ["s"]) == [1.0]
    assert judge.usage.requests == 4 and judge.usage.failed_pairs == 0


def test_a_silent_endpoint_and_a_closed_port_are_asked_again(server):
    def slow_at_first(text, number):
        if number == 1:
            time.sleep(0.6)
        return longer_wins(text, number)

    server.respond = slow_at_first
    judge = make_judge(server, timeout=0.2)
    assert judge(["p"], ["long"], ["s"]) == [1.0]
    assert judge.usage.requests == 3
    nobody = EndpointJudge("http://127.0.0.1:9/v1", "m", backoff=0.001, retries=1, progress=False)
    with pytest.raises(RuntimeError, match="1 of 1 pairs got no verdict.*127.0.0.1:9"):
        nobody(["p"], ["a"], ["b"])
    assert nobody.usage.requests == 2


class NotStopped(threading.Event):
    def __init__(self):
        super().__init__()
        self.waits = []

    def wait(self, timeout=None):
        self.waits.append(timeout)


def test_waits_grow_and_obey_the_endpoint(server):
    server.respond = lambda text, number: (429, "", {"Retry-After": "7" if number == 3 else "soon"})
    judge = make_judge(server, backoff=2.0, retries=7, max_failed=1.0)
    judge.client.stopped = NotStopped()
    assert math.isnan(judge(["p"], ["a"], ["b"])[0])
    assert judge.client.stopped.waits == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    server.bodies.clear()
    judge = make_judge(server, backoff=0.5, retries=3, max_failed=1.0)
    judge.client.stopped = NotStopped()
    judge(["p"], ["a"], ["b"])
    assert judge.client.stopped.waits == [0.5, 1.0, 7.0]


@pytest.mark.parametrize("at_work", ["waiting to ask again", "waiting for the answer"])
def test_it_ends_at_once_where_it_is_interrupted(server, at_work):
    def interrupt(text, number):
        if number == 2:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        if at_work == "waiting for the answer":
            time.sleep(20)
        return 503, "busy"

    server.respond, start = interrupt, time.monotonic()
    judge = make_judge(server, backoff=20.0, concurrency=2)
    with pytest.raises(KeyboardInterrupt):
        judge(["p"] * 20, [f"a{i}" for i in range(20)], ["b"] * 20)
    assert time.monotonic() - start < 5 and len(server.bodies) == 2
    server.respond = longer_wins
    assert judge(["p"], ["long"], ["b"]) == [1.0]  # the next call is another run


def test_an_error_of_one_pair_ends_what_the_others_wait_for(server):
    server.respond = lambda text, number: (401, "") if "bad" in text else (503, "busy")
    judge, start = make_judge(server, backoff=20.0, concurrency=4), time.monotonic()
    with pytest.raises(RuntimeError, match="status 401"):
        judge(["p"] * 4, ["a", "c", "d", "bad"], ["b"] * 4)
    assert time.monotonic() - start < 5 and len(server.bodies) <= 4


def test_failed_pairs_are_counted_and_too_many_are_an_error(server):
    server.respond = lambda text, number: (400, "too long") if "huge" in text else longer_wins(text, number)
    judge = make_judge(server, max_failed=0.25)
    outcomes = judge(["p"] * 4, ["long", "a", "huge", "a"], ["s", "bb", "x", "bb"])
    assert outcomes[:2] == [1.0, 0.0] and math.isnan(outcomes[2]) and outcomes[3] == 0.0
    assert judge.usage.failed_pairs == 1
    assert sum("huge" in body["messages"][0]["content"] for body in server.bodies) == 1  # 400 is not asked again
    with pytest.raises(RuntimeError, match="1 of 3 pairs got no verdict, more than `max_failed=0.25`.*400: 'too long'"):
        judge(["p"] * 3, ["long", "huge", "a"], ["s", "x", "bb"])


def test_a_refused_key_ends_it_at_once_and_is_not_shown(server, caplog):
    server.respond = lambda text, number: (401, f"{'x' * 185} wrong key sk-secret")
    judge = make_judge(server, api_key="sk-secret", concurrency=1)
    with pytest.raises(RuntimeError, match="status 401.*Check `base_url`, `model` and `api_key`") as error:
        judge(["p"] * 50, [f"a{i}" for i in range(50)], ["b"] * 50)
    assert len(server.bodies) < 5
    assert "sk-s" not in str(error.value) + caplog.text + repr(judge)
    server.respond = lambda text, number: (302, "", {"Location": f"{server.url}/elsewhere"})
    with pytest.raises(RuntimeError, match="status 302"):
        judge(["p"], ["a"], ["b"])


def test_the_cache_is_read_by_the_next_run(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    cache = tmp_path / "folder" / "cache.jsonl"
    pairs = ["p", "q"], ["long", "a"], ["s", "bb"]
    first = make_judge(server, cache=cache)
    assert first(*pairs) == [1.0, 0.0] and len(server.bodies) == 4
    assert server.headers_seen[0]["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in cache.read_text()
    second = make_judge(server, cache=cache, prices=(1.0, 1.0))
    assert second(*pairs) == [1.0, 0.0] and len(server.bodies) == 4
    assert second.usage.cache_hits == 4 and second.usage.requests == 0 and second.cost == 0.0
    # Another request, model or endpoint has other answers.
    make_judge(server, cache=cache, settings={"temperature": 1.0})(*pairs)
    assert len(server.bodies) == 8

    # Killed while it wrote its last line: that answer is asked for again, the others are not.
    content = cache.read_bytes()
    cache.write_bytes(content[:-20])
    judge = make_judge(server, cache=cache, settings={"temperature": 1.0})
    assert judge(*pairs) == [1.0, 0.0] and judge.usage.requests == 1
    assert sorted(cache.read_bytes().splitlines()) == sorted(content.splitlines())
    cache.write_bytes(b"my notes\n" + content)
    with pytest.raises(ValueError, match="Line 1 of the cache .* is no judge's answer"):
        make_judge(server, cache=cache)


def test_cost_and_concurrency(server):
    def slow(text, number):
        time.sleep(0.05)
        return longer_wins(text, number)

    server.respond = slow
    judge = make_judge(server, concurrency=3, prices=(2.0, 10.0))
    judge(["p"] * 6, [f"long{i}" for i in range(6)], ["s"] * 6)
    assert server.most_at_once == 3
    assert judge.usage.prompt_tokens == 1200 and judge.usage.completion_tokens == 84
    assert judge.cost == pytest.approx((1200 * 2 + 84 * 10) / 1e6)
    assert make_judge(server).cost is None
    server.respond = lambda text, number: (200, '{"choices": [{"message": {"content": "[[A]]"}}]}')
    judge(["p"], ["new"], ["s"])
    assert judge.usage.without_usage == 2 and judge.usage.prompt_tokens == 1200


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"template": "{prompt} {answer_a} [[A]] [[B]] [[TIE]]"}, r"`template` lacks \{answer_b\}\."),
        ({"template": "{prompt} {answer_a} {answer_b} [[A]] [[B]]"}, r"`template` lacks \[\[TIE\]\]"),
        ({"base_url": "file:///etc/passwd"}, "`base_url` must begin with http"),
        ({"settings": {"model": "x"}}, "`settings` cannot have `model`"),
        ({"concurrency": 0}, "`concurrency` must be at least 1"),
        ({"timeout": 0}, "`timeout` must be a finite number above 0"),
        ({"timeout": math.nan}, "`timeout` must be a finite number above 0"),
        ({"max_failed": 5}, "`max_failed` is a share"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        EndpointJudge(**{"base_url": "http://localhost/v1", "model": "m", **kwargs})
    EndpointJudge("http://localhost/v1", "m", template=DEFAULT_TEMPLATE)


# --- models and functions --------------------------------------------------------------------------------------------


def test_a_scoring_judge_compares_scores():
    judge = ScoringJudge(
        lambda prompts, answers: [float(len(p) * len(a)) for p, a in zip(prompts, answers, strict=True)]
    )
    assert judge(["p"] * 3, ["aa", "a", "b"], ["a", "aa", "c"]) == [1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    "make", [lambda x: torch.tensor(x).bfloat16(), lambda x: [*torch.tensor(x, requires_grad=True)], np.array]
)
def test_a_scoring_judge_reads_tensors(make):
    judge = ScoringJudge(lambda prompts, answers: make([float(len(answer)) for answer in answers]))
    assert judge(["p"] * 3, ["aa", "a", "b"], ["a", "aa", "c"]) == [1.0, 0.0, 0.5]


def test_a_classifier_is_read_at_the_last_token():
    # Texts end in EOS, so this one likes every text the same; the one that reads the word before is a TokenRewardModel.
    tokenizer = tiny.word_tokenizer(pad_token="<eos>")
    judge = RewardModelJudge(tiny.unigram_classifier({1: 0.7}), tokenizer, batch_size=2)
    assert judge.scores(["a", "a b c d"], [" b", " c"]) == pytest.approx([0.7, 0.7])
    tokenizer.eos_token = None
    judge = RewardModelJudge(tiny.unigram_classifier({4: 0.5, 5: -0.25}), tokenizer, batch_size=2)
    assert judge.scores(["a", "a b c d", "a"], [" b", " a c", " b b"]) == pytest.approx([0.5, -0.25, 0.5])
    assert judge(["a", "a b c d", "a"], [" b", " c", " c b"], [" c", " b", " b"]) == [1.0, 0.0, 0.5]


def test_a_token_reward_model_scores_as_score_texts_does():
    tokenizer = tiny.tokenizer()
    model = TokenRewardModel.from_backbone(tiny.sequence_classifier()).train()
    prompts, answers = ["Human: how?", "This movie", "no"], [" mix the flour", "", " was terrific.<eos>"]
    expected = [s.score for s in model.score_texts(answers, tokenizer, prompts=prompts)]
    assert RewardModelJudge(model, tokenizer, batch_size=2).scores(prompts, answers) == pytest.approx(
        expected, abs=1e-6
    )
    assert model.training


def test_an_answer_continues_what_the_prompt_began():
    tokenizer = tiny.word_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} .{{ ' ' }}{% endfor %}"
    judge = RewardModelJudge(tiny.sequence_classifier(vocab_size=16), tokenizer)
    prompt = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert judge._encode(prompt, " c") == [3, 15, 4, 5, 15]


def test_special_tokens_are_added_once():
    tokenizer = tiny.word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unk> $A <eos>", special_tokens=[("<unk>", 2), ("<eos>", 1)]
    )
    judge = RewardModelJudge(tiny.sequence_classifier(vocab_size=16), tokenizer)
    assert judge._encode("a", " b") == judge._encode("<unk> a", " b <eos>") == [2, 3, 4, 1]


def test_messages_get_the_chat_template():
    tokenizer = tiny.word_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} .{{ ' ' }}{% endfor %}"
    model = tiny.sequence_classifier(vocab_size=16)
    judge = RewardModelJudge(model, tokenizer)
    [score] = judge.scores([[{"role": "user", "content": "a b"}]], ["c"])
    with torch.no_grad():
        assert score == pytest.approx(model(torch.tensor([[3, 4, 15, 5, 15]])).logits.item(), abs=1e-6)


def test_judges_read_what_the_row_gives_the_chat_template():
    """The sampler's prompts, and those of answers to edit, carry it."""
    tokenizer = tiny.word_tokenizer()
    tokenizer.chat_template = (
        "{{ messages[0]['content'] }} {{ 'c' if thinking else 'd' }}"
        "{% for message in messages[1:] %} {{ message['content'] }}{% endfor %}"
    )
    model, user = tiny.unigram_reward_model({}, {tiny.A: 1.0}), [{"role": "user", "content": "a"}]
    row = {"prompt": user, "chat_template_kwargs": {"thinking": True}}
    edited = {
        **row,
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "e"}],
    }
    [sampled] = AnswerSampler(tokenizer, Dataset.from_list([row])).prompts
    [task] = read_tasks(Dataset.from_list([edited]))
    judge = RewardModelJudge(model, tokenizer)
    for prompt, expected in ((sampled, "a c b"), (task.prompt, "a c b"), (user, "a d b")):
        assert tokenizer.decode(judge._encode(prompt, "b")) == expected and prompt == user


def test_reward_models_that_cannot_judge_are_refused():
    tokenizer = tiny.word_tokenizer()
    with pytest.raises(TypeError, match="`model` is a LlamaForCausalLM"):
        RewardModelJudge(tiny.causal_lm(), tokenizer)
    with pytest.raises(ValueError, match="num_labels=3"):
        classifier = tiny.sequence_classifier()
        classifier.config.num_labels = 3
        RewardModelJudge(classifier, tokenizer)
    judge = RewardModelJudge(tiny.unigram_classifier(), tokenizer)
    with pytest.raises(ValueError, match="Row 1 has 201 tokens, but the judge has 128 positions"):
        judge.scores(["a", "a"], [" b", " b" * 199])
