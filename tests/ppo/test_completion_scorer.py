"""What scores completions, against plain formulas and numbers worked out by hand."""

import math
import re

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    T5Config,
)

import tiny
from scorer_cases import ATTENTION_MASK, INPUT_IDS, TWO_ROWS, batch, sequence_classifier, token_reward_model
from tiny import EOS, PAD, PERIOD, A, C, D
from trl_tokenreward import TokenRewardModel
from trl_tokenreward.data.preprocessing import prepare_dataset
from trl_tokenreward.ppo.completion_scorer import CompletionScorer, RawScores
from trl_tokenreward.ppo.functional import joint_log_odds, shape_scores
from trl_tokenreward.ppo.prompts import prepare_prompts
from trl_tokenreward.reward_model.readout import (
    check_scorer,
    has_sequence_score,
    has_token_scores,
    prefix_scores,
    token_scores,
)


pytestmark = pytest.mark.any_trl


FAMILIES = ["llama", "qwen2", "gpt2", "gpt_neox"]


def token_classifier(family="llama"):
    torch.manual_seed(2)
    model = AutoModelForTokenClassification.from_config(tiny.config(family, num_labels=1, initializer_range=0.3))
    head = model.classifier if hasattr(model, "classifier") else model.score
    torch.nn.init.constant_(head.bias, 0.5)
    return model.eval()


def with_adapter(model, family="llama"):
    peft = pytest.importorskip("peft")
    targets = {"gpt2": ["c_attn"], "gpt_neox": ["query_key_value"]}.get(family, ["q_proj", "v_proj"])
    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False, fan_in_fan_out=family == "gpt2")
    return peft.get_peft_model(model, config).eval()


def row_by_row(score):
    """`score(ids)` of each row without its padding, (1, n) -> (n,), put back where the row stands; 0 in the padding."""
    scores = torch.zeros(INPUT_IDS.shape)
    for row, mask in enumerate(ATTENTION_MASK.bool()):
        scores[row, mask] = score(INPUT_IDS[row, mask][None]).detach().float()
    return scores


def assert_real_places_are(actual, expected):
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual * ATTENTION_MASK, expected, rtol=3e-6, atol=3e-6)
    assert expected[ATTENTION_MASK.bool()].std() > 0.05  # else little would be shown


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_scores_of_a_sequence_classifier(family, adapter):
    model = bare = sequence_classifier(family)
    if adapter:
        plain = prefix_scores(model, INPUT_IDS, ATTENTION_MASK)
        model = with_adapter(model, family)
        assert (prefix_scores(model, INPUT_IDS, ATTENTION_MASK) - plain).abs().max() > 0.01  # the adapter acts
    backbone = getattr(bare, bare.base_model_prefix)
    expected = row_by_row(lambda ids: backbone(ids).last_hidden_state[0] @ bare.score.weight[0])
    assert_real_places_are(prefix_scores(model, INPUT_IDS, ATTENTION_MASK), expected)


@pytest.mark.parametrize("pad_token_id", [None, PAD, EOS, 9])
def test_the_pad_token_has_no_say(pad_token_id):
    # EOS ends a text, and 9 is in one: a classifier that looks for the pad token would read its score elsewhere.
    plain, model = sequence_classifier(pad_token_id=None), sequence_classifier(pad_token_id=pad_token_id)
    model.load_state_dict(plain.state_dict())  # the pad token's embedding begins as 0
    last = prefix_scores(model, INPUT_IDS, ATTENTION_MASK).gather(1, torch.tensor([[4], [2], [2]]))
    expected = torch.cat([plain(torch.tensor([row])).logits for row in ([5, 6, 7, 1], [4, 8, 3], [7])])
    torch.testing.assert_close(last, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_token_scores_of_a_token_classifier(family, adapter):
    model = bare = token_classifier(family)
    if adapter:
        model = with_adapter(model, family)
    expected = row_by_row(lambda ids: bare(ids).logits[0, :, 0])
    assert_real_places_are(token_scores(model, INPUT_IDS, ATTENTION_MASK), expected)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_a_token_reward_model(family, adapter):
    model = bare = token_reward_model(family)
    if adapter:
        model = with_adapter(model, family)

    def hidden(ids):
        return bare.model(ids).last_hidden_state[0]

    prefix = row_by_row(lambda ids: hidden(ids) @ bare.score.weight[0])
    token = row_by_row(lambda ids: hidden(ids) @ bare.token_score.weight[0] + 0.25)
    assert_real_places_are(prefix_scores(model, INPUT_IDS, ATTENTION_MASK), prefix)
    assert_real_places_are(token_scores(model, INPUT_IDS, ATTENTION_MASK), token)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize(
    ("make", "tokens", "sequences"),
    [
        (token_reward_model, True, True),
        (token_classifier, True, False),
        (sequence_classifier, False, True),
        (tiny.causal_lm, False, False),
    ],
)
def test_what_a_model_offers(make, tokens, sequences, adapter):
    model = with_adapter(make()) if adapter else make()
    assert (has_token_scores(model), has_sequence_score(model)) == (tokens, sequences)


BERT = BertConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=1)  # fmt: skip


T5 = T5Config(vocab_size=16, d_model=8, d_kv=8, d_ff=8, num_layers=1, num_heads=1, num_labels=1)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (tiny.causal_lm, TypeError, "`reward_model` is a LlamaForCausalLM. Pass a TokenRewardModel"),
        (lambda: torch.nn.Linear(2, 1), TypeError, "`reward_model` is a Linear."),
        (lambda: AutoModelForSequenceClassification.from_config(BERT), TypeError, "BertForSequenceClassification"),
        (lambda: AutoModelForSequenceClassification.from_config(T5), TypeError, "T5ForSequenceClassification"),
        (
            lambda: AutoModelForSequenceClassification.from_config(tiny.config(num_labels=2)),
            ValueError,
            "`reward_model` has `num_labels=2`; a score needs one",
        ),
        (
            lambda: AutoModelForTokenClassification.from_config(tiny.config(num_labels=3)),
            ValueError,
            "`num_labels=3`",
        ),
    ],
)
def test_models_that_cannot_score(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        check_scorer(make(), "reward_model")


def test_value_model_of_a_reward_model_with_an_adapter():
    reward = with_adapter(token_reward_model())
    value = TokenRewardModel.from_backbone(reward)
    with torch.no_grad():
        expected = prefix_scores(reward, INPUT_IDS, ATTENTION_MASK)
        torch.testing.assert_close(prefix_scores(value, INPUT_IDS, ATTENTION_MASK), expected, rtol=3e-6, atol=3e-6)
    mine = {parameter.data_ptr() for parameter in value.parameters()}
    assert mine.isdisjoint(parameter.data_ptr() for parameter in reward.parameters())
    assert all(parameter.requires_grad for parameter in value.parameters())


SCORES = torch.tensor([[1.0, 3.0, 0.0], [-2.0, 4.0, 6.0]])


MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("signal", "settings", "expected"),
    [
        ("token_scores", {}, [[1, 3], [-2, 4, 6]]),
        ("token_scores", {"scale": -0.5}, [[-0.5, -1.5], [1, -2, -3]]),
        ("token_scores", {"center": True}, [[-1.4, 0.6], [-4.4, 1.6, 3.6]]),  # the mean of five is 2.4
        ("token_scores", {"clip": 2.5}, [[1, 2.5], [-2, 2.5, 2.5]]),
        (
            "token_scores",
            {"scale": 2.0, "center": True, "clip": 3.0},
            [[-2.8, 1.2], [-3, 3, 3]],  # 2, 6, -4, 8, 12; less 4.8: -2.8, 1.2, -8.8, 3.2, 7.2; clipped
        ),
        # The rows' sums are 4 and 8. What changes, changes on the last token.
        ("sequence_score", {}, [[1, 3], [-2, 4, 6]]),
        ("sequence_score", {"scale": 2.0}, [[2, 6], [-4, 8, 12]]),
        ("sequence_score", {"center": True}, [[1, -3], [-2, 4, 0]]),
        ("sequence_score", {"clip": 5.0}, [[1, 3], [-2, 4, 3]]),
        ("sequence_score", {"scale": 2.0, "center": True, "clip": 1.0}, [[2, -3], [-4, 8, -3]]),
    ],
)
def test_shape_scores_by_hand(signal, settings, expected):
    shaped = shape_scores(SCORES, MASK, signal=signal, **settings)
    for row, values in enumerate(expected):
        assert shaped[row, : len(values)].tolist() == pytest.approx(values, abs=1e-6)
    junk = torch.where(MASK.bool(), SCORES, 1e6)
    again = shape_scores(junk, MASK, signal=signal, **settings)
    torch.testing.assert_close(again * MASK, shaped * MASK)


def test_joint_log_odds_by_hand():
    scores = torch.tensor([[4.0, -4.0, 2.0, 7.0], [300.0, 300.0, 0.0, 0.0]])
    owners = torch.tensor([[0, 0, 2, -1], [1, 1, 2, -1]])
    joint, counts = joint_log_odds(scores, owners, 3)
    assert counts.tolist() == [[2, 0, 1], [0, 2, 1]]
    both = 1 / (1 + math.exp(-4)) / (1 + math.exp(4))
    assert joint[0].tolist() == pytest.approx([math.log(both / (1 - both)), 0, 2])
    assert joint[1, 1] > 13 and joint[1].isfinite().all()


@pytest.mark.parametrize(
    ("signal", "density", "expected"),
    [
        (None, None, [[1, 2, -4, 0.5], [-4, 0.5, 0, 0]]),
        ("token_scores", "sequence", [[1, 2, -4, 0.5], [-4, 0.5, 0, 0]]),  # raw scores; `spread` moves them
        ("sequence_score", None, [[0, 0, 0, 7], [0, 7, 0, 0]]),
        ("sequence_score", "sequence", [[0, 0, 0, 7], [0, 7, 0, 0]]),
        ("sequence_score", "potential", [[5, -2, 6, -2], [9, -2, 0, 0]]),
        (None, "potential", [[5, -2, 6, -2], [9, -2, 0, 0]]),
    ],
)
def test_raw_scores_by_hand(signal, density, expected):
    reward = tiny.unigram_reward_model(
        {C: 1.0, PERIOD: 2.0, D: -4.0, EOS: 0.5}, {C: 5.0, PERIOD: 3.0, D: 9.0, EOS: 7.0}
    )
    for batch_size in (1, 64):
        scorer = CompletionScorer(reward, tiny.word_tokenizer(), signal=signal, density=density, batch_size=batch_size)
        torch.testing.assert_close(
            scorer.raw_scores(*TWO_ROWS).values, torch.tensor(expected).float(), rtol=0, atol=1e-5
        )


def test_a_model_without_token_scores_gives_its_sequence_score():
    scorer = CompletionScorer(tiny.unigram_classifier({EOS: 3.0}), tiny.word_tokenizer())
    assert scorer.raw_scores(*TWO_ROWS).values.tolist() == [[0, 0, 0, 3], [0, 3, 0, 0]]
    assert scorer.signal == "sequence_score"


@pytest.mark.parametrize("other", [False, True], ids=["ids", "text"])
def test_a_sequence_score_is_read_where_rows_of_messages_end(other):
    """ChatML ends an answer with its EOS and a line break; heads are trained at the latter."""
    policy, reward_tokenizer = tiny.tokenizer(), tiny.tokenizer("metaspace" if other else "bpe")
    for tokenizer in (policy, reward_tokenizer):
        tokenizer.chat_template = (
            "{% for m in messages %}{{ m['role'] }}\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant\n{% endif %}"
        )
    user, said = [{"role": "user", "content": "the quick"}], ["brown fox", "lazy dog"]
    rows = [{"prompt": user, "chosen": [{"role": "assistant", "content": said[0]}],
             "rejected": [{"role": "assistant", "content": said[1]}]}]  # fmt: skip
    [trained] = prepare_dataset(Dataset.from_list(rows), reward_tokenizer)[0]
    model = token_reward_model(vocab_size=400)
    with torch.no_grad():
        expected = [model(torch.tensor([trained[f"{side}_ids"]])).logits.item() for side in ("chosen", "rejected")]
    [prompt] = prepare_prompts(Dataset.from_list([{"prompt": user}]), policy, "train")
    answers = [[*policy(text, add_special_tokens=False)["input_ids"], policy.eos_token_id] for text in said]
    contents = batch(*((prompt["input_ids"], ids) for ids in answers))
    rows = [{"prompt": user}] * 2
    scorer = CompletionScorer(model, policy, reward_tokenizer if other else None, signal="sequence_score")
    scores = scorer.raw_scores(*contents[:3], rows).values
    assert scores.sum(1).tolist() == pytest.approx(expected, abs=1e-5)
    assert (scores != 0).sum(1).tolist() == [1, 1]
    scorer = CompletionScorer(model, policy, reward_tokenizer if other else None, density="potential")
    differences = scorer.raw_scores(*contents[:3], rows).values
    assert differences.sum(1).tolist() == pytest.approx(expected, abs=1e-5)
    assert ((differences != 0).sum(1) > 3).all()
    plain = CompletionScorer(model, policy, signal="sequence_score").raw_scores(*contents)  # ids without messages
    assert plain.values.sum(1).tolist() != pytest.approx(expected, abs=1e-3)


def test_sentences_end_at_marks_and_at_line_breaks():
    tokenizer = tiny.tokenizer(vocab_size=400, corpus=["one. two! three? four\nfive 6.5"])
    scorer = CompletionScorer(lambda **kwargs: [], tokenizer, density="sentence")
    ids = tokenizer("one. two! three\nfour.")["input_ids"]
    ends = scorer._sentence_ends(torch.tensor([ids]))[0].tolist()
    pieces = [tokenizer.decode([token]) for token in ids]
    assert [piece for piece, end in zip(pieces, ends, strict=True) if end] == [".", "!", "\n", "."]


@pytest.mark.parametrize("text", ["好。好", "ठीक।ठीक", "خوب؟خوب", "լավ։լավ", 'one." two', "so… two", "(one.) two"])
@pytest.mark.parametrize("vocab_size", [260, 400])  # at 260 a character has a token for each byte
def test_sentences_end_in_every_script(text, vocab_size):
    tokenizer = tiny.tokenizer(vocab_size=vocab_size, corpus=[text])
    ids = tokenizer(text)["input_ids"]
    scorer = CompletionScorer(lambda **kwargs: [], tokenizer, density="sentence")
    ends = scorer._sentence_ends(torch.tensor([ids, ids]))
    assert ends[0].tolist() == ends[1].tolist()
    places = ends[0].nonzero().flatten().tolist()
    assert places
    mark = max(text.find(c) for c in "。।؟։.…")
    for place in places:
        assert text[mark] in tokenizer.decode(ids[: place + 1])
    assert tokenizer.decode(ids[: places[0] + 1]).startswith(text[: mark + 1])


def test_spreading_keeps_totals():
    torch.manual_seed(0)
    scores, mask = torch.randn(2, 4) * TWO_ROWS[2], TWO_ROWS[2]
    totals = scores.sum(1)
    for density in ("token", "sentence", "sequence"):
        scorer = CompletionScorer(tiny.unigram_reward_model({A: 1.0}), tiny.word_tokenizer(), density=density)
        torch.testing.assert_close(
            scorer.spread(RawScores(scores, "token_scores", mask), TWO_ROWS[1], mask).sum(1), totals
        )


@pytest.mark.parametrize(
    ("reward", "arguments", "error", "message"),
    [
        (tiny.unigram_reward_model(), {}, ValueError, "every token would score 0. Train it with TokenRewardTrainer."),
        (tiny.unigram_reward_model({}, {EOS: 1.0}), {"signal": "token_scores"}, ValueError, "set `reward_signal='sequence_score'`"),
        (token_classifier(), {"signal": "sequence_score"}, ValueError, "needs a sequence score; LlamaForTokenClassification has none"),
        (sequence_classifier(), {"signal": "token_scores"}, ValueError, "needs token scores; LlamaForSequenceClassification has none"),
        (lambda **kwargs: [], {"signal": "token_scores"}, ValueError, "`reward_signal` has no effect on a reward function"),
        (lambda **kwargs: [], {"reward_processing_class": tiny.word_tokenizer()}, ValueError, "`reward_processing_class` has no effect"),
        (3, {}, TypeError, "must be a model or a function, got int"),
        (None, {}, TypeError, "must be a model or a function, got NoneType"),
    ],
)  # fmt: skip
def test_scorers_that_cannot_be_made(reward, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        CompletionScorer(reward, tiny.word_tokenizer(), **arguments)


def test_an_untrained_token_head_is_fine_for_sequence_scores():
    scorer = CompletionScorer(
        tiny.unigram_reward_model(None, {EOS: 2.0}), tiny.word_tokenizer(), signal="sequence_score"
    )
    assert scorer.raw_scores(*TWO_ROWS).values.sum(1).tolist() == [2, 2]
