"""What scores completions, against plain formulas and numbers worked out by hand."""

import re

import numpy as np
import pytest
import torch
from tokenizers import Regex, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    T5Config,
)

import tiny
from trl_tokenreward import TokenRewardModel
from trl_tokenreward.ppo.completion_scorer import CompletionScorer, RawScores
from trl_tokenreward.ppo.functional import shape_scores
from trl_tokenreward.ppo.prompts import Prompts
from trl_tokenreward.reward_model.readout import (
    check_scorer,
    has_sequence_score,
    has_token_scores,
    prefix_scores,
    token_scores,
)


FAMILIES = ["llama", "qwen2", "gpt2", "gpt_neox"]
PAD, EOS = 0, 1
A, B, C, D, E, F = range(3, 9)
PERIOD = 15

# Padding on both sides, and rows of unequal length. What stands in the padding is no pad token.
INPUT_IDS = torch.tensor([[9, 5, 6, 7, 1], [4, 8, 3, 9, 9], [9, 9, 7, 9, 9]])
ATTENTION_MASK = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 0, 0]])


def sequence_classifier(family="llama", **kwargs):
    return tiny.sequence_classifier(family, initializer_range=0.3, **kwargs).eval()


def token_classifier(family="llama"):
    torch.manual_seed(2)
    model = AutoModelForTokenClassification.from_config(tiny.config(family, num_labels=1, initializer_range=0.3))
    head = model.classifier if hasattr(model, "classifier") else model.score
    torch.nn.init.constant_(head.bias, 0.5)
    return model.eval()


def token_reward_model(family="llama", **kwargs):
    model = TokenRewardModel.from_backbone(sequence_classifier(family, **kwargs))
    torch.nn.init.normal_(model.token_score.weight)
    torch.nn.init.constant_(model.token_score.bias, 0.25)
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


# --- models --------------------------------------------------------------------------------------------------------


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


# --- shaping -------------------------------------------------------------------------------------------------------

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


# --- CompletionScorer ----------------------------------------------------------------------------------------------


def batch(*pairs, pad=PAD):
    """Prompts and completions as tensors, with the rows of a data set beside them."""
    width, length = (max(len(pair[side]) for pair in pairs) for side in (0, 1))
    prompt_ids, completion_ids = torch.full((len(pairs), width), pad), torch.full((len(pairs), length), pad)
    prompt_mask, completion_mask = torch.zeros_like(prompt_ids), torch.zeros_like(completion_ids)
    for row, (prompt, completion) in enumerate(pairs):
        prompt_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        prompt_mask[row, width - len(prompt) :] = 1
        completion_ids[row, : len(completion)] = torch.tensor(completion)
        completion_mask[row, : len(completion)] = 1
    rows = [{"input_ids": prompt} for prompt, _ in pairs]
    return Prompts(prompt_ids, prompt_mask), completion_ids, completion_mask, rows


def word_reward_model(token=None, sequence=None):
    """A TokenRewardModel over `tiny.word_tokenizer` whose scores depend on the token alone."""
    model = TokenRewardModel.from_backbone(tiny.unigram_classifier(sequence)).eval()
    model.token_score.weight.data = torch.tensor([[(token or {}).get(i, 0.0) / 4 for i in range(16)]])
    return model


TWO_ROWS = batch(([A, A, B], [C, PERIOD, D, EOS]), ([B], [D, EOS]))


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
    reward = word_reward_model({C: 1.0, PERIOD: 2.0, D: -4.0, EOS: 0.5}, {C: 5.0, PERIOD: 3.0, D: 9.0, EOS: 7.0})
    for batch_size in (1, 64):
        scorer = CompletionScorer(reward, tiny.word_tokenizer(), signal=signal, density=density, batch_size=batch_size)
        torch.testing.assert_close(
            scorer.raw_scores(*TWO_ROWS).values, torch.tensor(expected).float(), rtol=0, atol=1e-5
        )


def test_a_model_without_token_scores_gives_its_sequence_score():
    scorer = CompletionScorer(tiny.unigram_classifier({EOS: 3.0}), tiny.word_tokenizer())
    assert scorer.raw_scores(*TWO_ROWS).values.tolist() == [[0, 0, 0, 3], [0, 3, 0, 0]]
    assert scorer.signal == "sequence_score"


def test_sentences_end_at_marks_and_at_line_breaks():
    tokenizer = tiny.tokenizer(vocab_size=400, corpus=["one. two! three? four\nfive 6.5"])
    scorer = CompletionScorer(lambda **kwargs: [], tokenizer, density="sentence")
    ids = tokenizer("one. two! three\nfour.")["input_ids"]
    ends = scorer._sentence_ends(torch.tensor([ids]))[0].tolist()
    pieces = [tokenizer.decode([token]) for token in ids]
    assert [piece for piece, end in zip(pieces, ends, strict=True) if end] == [".", "!", "\n", "."]


def test_spreading_keeps_totals():
    torch.manual_seed(0)
    scores, mask = torch.randn(2, 4) * TWO_ROWS[2], TWO_ROWS[2]
    totals = scores.sum(1)
    for density in ("token", "sentence", "sequence"):
        scorer = CompletionScorer(word_reward_model({A: 1.0}), tiny.word_tokenizer(), density=density)
        torch.testing.assert_close(scorer.spread(RawScores(scores, "token_scores"), TWO_ROWS[1], mask).sum(1), totals)


@pytest.mark.parametrize(
    ("reward", "arguments", "error", "message"),
    [
        (word_reward_model(), {}, ValueError, "The reward model's token head is untrained"),
        (word_reward_model(), {"signal": "token_scores"}, ValueError, "set `reward_signal='sequence_score'`"),
        (token_classifier(), {"signal": "sequence_score"}, ValueError, "a LlamaForTokenClassification does not give that"),
        (sequence_classifier(), {"signal": "token_scores"}, ValueError, "a LlamaForSequenceClassification does not give that"),
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
    scorer = CompletionScorer(word_reward_model(None, {EOS: 2.0}), tiny.word_tokenizer(), signal="sequence_score")
    assert scorer.raw_scores(*TWO_ROWS).values.sum(1).tolist() == [2, 2]


# --- functions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ([1.5, -2], [[0, 0, 0, 1.5], [0, -2, 0, 0]]),
        (torch.tensor([1.5, -2]), [[0, 0, 0, 1.5], [0, -2, 0, 0]]),
        (np.array([1.5, -2]), [[0, 0, 0, 1.5], [0, -2, 0, 0]]),
        ([True, False], [[0, 0, 0, 1], [0, 0, 0, 0]]),
        ([[1, 2, 3, 4.5], [5, 6]], [[1, 2, 3, 4.5], [5, 6, 0, 0]]),
        ([(1, 2, 3, 4.5), torch.tensor([5, 6])], [[1, 2, 3, 4.5], [5, 6, 0, 0]]),
        ([np.array([1, 2, 3, 4.5]), np.array([5, 6])], [[1, 2, 3, 4.5], [5, 6, 0, 0]]),
    ],
)
def test_what_a_function_may_return(returned, expected):
    scorer = CompletionScorer(lambda **kwargs: returned, tiny.word_tokenizer())
    assert scorer.raw_scores(*TWO_ROWS).values.tolist() == expected


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        ([1.0], ValueError, "returned 1 scores for 2 completions"),
        ([1.0, [1.0, 2.0]], ValueError, "floats and lists of floats"),
        ([[1, 2, 3, 4], [5, 6, 7]], ValueError, "returned 3 token scores for completion 1, which has 2 tokens"),
        ([[1, 2, 3, 4], []], ValueError, "returned 0 token scores for completion 1"),
        ([1.0, None], TypeError, "returned None for completion 1"),
        ([1.0, "good"], TypeError, "returned 'good' for completion 1"),
        ([[1, 2, 3, None], [5, 6]], TypeError, "for completion 0, where a float or one float per token is due"),
        ([float("nan"), 1.0], ValueError, "returned nan for completion 0"),
        ([[1, 2, 3, 4], [5, float("inf")]], ValueError, "returned [5, inf] for completion 1"),
        (torch.zeros(2, 1, 1), ValueError, "for completion 0"),
    ],
)
def test_what_a_function_may_not_return(returned, error, message):
    scorer = CompletionScorer(lambda **kwargs: returned, tiny.word_tokenizer())
    with pytest.raises(error, match=re.escape(message)):
        scorer.raw_scores(*TWO_ROWS)


def test_a_function_may_not_change_its_mind():
    returned = iter([[1.0, 2.0], [[1, 2, 3, 4], [5, 6]]])
    scorer = CompletionScorer(lambda **kwargs: next(returned), tiny.word_tokenizer())
    scorer.raw_scores(*TWO_ROWS)
    with pytest.raises(ValueError, match="changed between one float and one float per token"):
        scorer.raw_scores(*TWO_ROWS)


@pytest.mark.parametrize("density", ["token", "sentence"])
def test_one_float_cannot_be_spread(density):
    scorer = CompletionScorer(lambda **kwargs: [1.0, 2.0], tiny.word_tokenizer(), density=density)
    with pytest.raises(
        ValueError, match=f"`reward_density='{density}'` needs a reward function that returns one float"
    ):
        scorer.raw_scores(*TWO_ROWS)


# --- a reward model with a tokenizer of its own --------------------------------------------------------------------

TEXT = "This movie was terrific. I would watch it again, and my friends would too!"


def encoded(tokenizer, *texts):
    """Pairs of prompt and completion texts as token ids of the joint text, with an EOS at the end."""
    pairs = []
    for prompt, completion in texts:
        prompt_ids = tokenizer(prompt)["input_ids"]
        ids = tokenizer(prompt + completion)["input_ids"]
        assert ids[: len(prompt_ids)] == prompt_ids
        pairs.append((prompt_ids, [*ids[len(prompt_ids) :], tokenizer.eos_token_id]))
    return batch(*pairs)


TEXTS = [(TEXT[:14], TEXT[14:]), ("the quick brown fox", " jumps over the lazy dog"), ("1 2 3 4", " 5 6")]


def test_the_way_through_text_is_the_direct_one_where_the_tokenizers_agree():
    tokenizer = tiny.tokenizer()
    contents = encoded(tokenizer, *TEXTS)
    for settings in ({}, {"signal": "sequence_score"}, {"density": "potential"}):
        scorer = CompletionScorer(token_reward_model(), tokenizer, tiny.tokenizer(), **settings)
        assert scorer.reward_processing_class is None  # the same vocabulary, so ids will do
        direct = scorer.raw_scores(*contents).values
        scorer.reward_processing_class = tiny.tokenizer()
        torch.testing.assert_close(scorer.raw_scores(*contents).values, direct, rtol=0, atol=2e-6)


@pytest.mark.parametrize("policy_kind", ["bpe", "metaspace", "wordpiece", "unigram"])
@pytest.mark.parametrize("reward_kind", ["bpe", "metaspace"])
def test_totals_are_those_that_the_reward_model_gives_by_itself(policy_kind, reward_kind):
    # The reward model's own view: its tokens of the whole text, of which those that end after the prompt are scored.
    corpus = [text for pair in TEXTS for text in pair] + tiny.CORPUS
    policy_tokenizer = tiny.tokenizer(policy_kind, vocab_size=120, corpus=corpus)
    reward_tokenizer = tiny.tokenizer(reward_kind, vocab_size=310, corpus=corpus)
    model = token_reward_model(vocab_size=400)
    prompts, completion_ids, completion_mask, rows = encoded(policy_tokenizer, *TEXTS)
    scorer = CompletionScorer(model, policy_tokenizer, reward_tokenizer)
    scores = scorer.raw_scores(prompts, completion_ids, completion_mask, rows).values
    assert ((scores != 0) <= completion_mask.bool()).all()
    sequence = CompletionScorer(model, policy_tokenizer, reward_tokenizer, signal="sequence_score")
    for row in range(len(TEXTS)):
        prompt_ids = prompts.ids[row][prompts.mask[row].bool()].tolist()
        ids = completion_ids[row][completion_mask[row].bool()].tolist()
        text = policy_tokenizer.decode([*prompt_ids, *ids], skip_special_tokens=True)
        prompt = policy_tokenizer.decode(prompt_ids)
        assert text.startswith(prompt)
        encoding = reward_tokenizer(text, return_offsets_mapping=True)
        inputs = torch.tensor([[*encoding["input_ids"], reward_tokenizer.eos_token_id]])
        output = model(inputs)
        of_completion = [end > len(prompt) for _, end in encoding["offset_mapping"]] + [True]
        assert scores[row].sum() == pytest.approx(
            output.token_scores[0][torch.tensor(of_completion)].sum().item(), abs=1e-4
        )
        whole = sequence.raw_scores(prompts, completion_ids, completion_mask, rows).values[row]
        assert whole.sum() == pytest.approx(output.logits.item(), abs=1e-4)


def test_scores_go_to_the_token_in_which_they_end():
    # The policy reads words; the reward model reads characters, and says 1 of each `c` and 10 of each space.
    words, characters = tiny.word_tokenizer(), tiny.word_tokenizer(words="abcdefghijk ")
    characters.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    c, space = characters("c ")["input_ids"]
    scorer = CompletionScorer(word_reward_model({c: 1.0, space: 10.0}), words, characters)
    # "a b" and " c d c": each space is part of the word after it.
    scores = scorer.raw_scores(*batch(([A, B], [C, D, C]), ([A], [C, C, EOS]))).values
    torch.testing.assert_close(scores, torch.tensor([[11.0, 10, 11], [11, 11, 0]]), rtol=0, atol=1e-4)


def test_what_the_reward_tokenizer_adds_belongs_to_no_word():
    # A tokenizer that puts EOS at the end by itself: it stands for no text, and is scored as the end of the completion.
    words, adding = tiny.word_tokenizer(), permuted_tokenizer()
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> $A <eos>", special_tokens=[("<unk>", 2), ("<eos>", EOS)]
    )
    c = adding.convert_tokens_to_ids("c")
    scorer = CompletionScorer(word_reward_model({c: 1.0, EOS: 100.0, 2: 1000.0}), words, adding)
    scores = scorer.raw_scores(*batch(([A], [C, D]), ([A], [C, EOS]))).values
    torch.testing.assert_close(scores, torch.tensor([[1.0, 100], [1, 100]]), rtol=0, atol=1e-4)


def test_messages_get_the_reward_models_own_template():
    words, permuted = tiny.word_tokenizer(), permuted_tokenizer()
    words.chat_template = "a {{ messages[0]['content'] }} b"
    permuted.chat_template = "<unk> {{ messages[0]['content'] }} k k"
    # The completion's text begins with the space that joins it to the prompt.
    expected = [2, *permuted("c k k d e")["input_ids"], EOS]
    model, seen = word_reward_model({token: float(token) for token in range(16)}), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.extend(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    prompts, completion_ids, completion_mask, _ = batch(([A, C, B], [D, E, EOS]))
    rows = [{"prompt": [{"role": "user", "content": "c"}], "input_ids": [A, C, B]}]
    scores = CompletionScorer(model, words, permuted).raw_scores(prompts, completion_ids, completion_mask, rows).values
    assert seen == [expected]
    torch.testing.assert_close(scores, torch.tensor([expected[-3:]]).float(), rtol=0, atol=1e-4)


def test_a_completion_without_text_is_scored_at_the_end_of_the_prompt():
    scorer = CompletionScorer(
        word_reward_model({permuted_tokenizer().convert_tokens_to_ids("a"): 3.0}),
        tiny.word_tokenizer(),
        permuted_tokenizer(),
    )
    assert scorer.raw_scores(*batch(([A], [PAD]))).values.tolist() == [[3.0]]
    with pytest.raises(ValueError, match="A completion and its prompt are no text"):
        scorer.raw_scores(*batch(([PAD], [PAD])))


def permuted_tokenizer():
    """The words of `tiny.word_tokenizer` under other numbers: `a` is 14, `b` 13 and so on."""
    tokenizer = tiny.word_tokenizer(words="lkjihgfedcba.")
    assert tokenizer.convert_tokens_to_ids("a") == 14
    return tokenizer


def test_a_slow_reward_tokenizer_cannot_be_mapped():
    from transformers import ByT5Tokenizer

    with pytest.raises(ValueError, match="`reward_processing_class` must be a fast tokenizer"):
        CompletionScorer(token_reward_model(), tiny.word_tokenizer(), ByT5Tokenizer())


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_an_encoder_that_classifies_tokens_gets_the_positions_that_it_knows(family):
    from transformers import RobertaConfig

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"vocab_size": 20, "max_position_embeddings": 16, "initializer_range": 0.5, "num_labels": 1}
    torch.manual_seed(0)
    config = {"bert": BertConfig, "roberta": RobertaConfig}[family](**sizes)
    model = AutoModelForTokenClassification.from_config(config).eval()
    with torch.no_grad():
        scores = token_scores(model, INPUT_IDS, ATTENTION_MASK)
        for row, mask in enumerate(ATTENTION_MASK.bool()):
            alone = model(input_ids=INPUT_IDS[row][mask][None]).logits[0, :, 0]
            torch.testing.assert_close(scores[row][mask], alone, rtol=0, atol=1e-5)


def test_a_character_of_several_tokens_is_scored_with_its_last_one():
    policy_tokenizer, reward_tokenizer = tiny.tokenizer(), tiny.tokenizer("unigram")
    scorer = CompletionScorer(token_reward_model(vocab_size=300), policy_tokenizer, reward_tokenizer)
    ids = policy_tokenizer(" a😀b")["input_ids"]
    assert len(ids) == 6  # ` a`, four bytes, `b`
    _, tokens, owners = scorer._encode(policy_tokenizer("the")["input_ids"], ids, {})
    texts = [reward_tokenizer.decode([token]) for token in tokens]
    owner_of = dict(zip(texts, owners, strict=True))
    assert owner_of["<unk>"] == 4 and owner_of["b"] == 5
