"""Other tokenizer: a part of the tests of completion_scorer."""

import pytest
import torch
from tokenizers import Regex, pre_tokenizers, processors
from torch.nn.functional import logsigmoid
from transformers import (
    AutoModelForTokenClassification,
    BertConfig,
)

import tiny
from scorer_cases import ATTENTION_MASK, INPUT_IDS, batch, token_reward_model
from tiny import EOS, PAD, A, B, C, D, E
from trl_tokenreward.ppo.completion_scorer import CompletionScorer, RawScores, worst_of
from trl_tokenreward.reward_model.readout import (
    token_scores,
)


pytestmark = pytest.mark.any_trl


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
    raw = scorer.raw_scores(prompts, completion_ids, completion_mask, rows)
    assert ((raw.values != 0) <= completion_mask.bool()).all()
    log_probs = scorer.spread(raw, completion_ids, completion_mask, log_sigmoid=True)
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
        expected = logsigmoid(output.token_scores[0][torch.tensor(of_completion)])
        assert log_probs[row].sum() == pytest.approx(expected.sum().item(), abs=1e-4)
        assert raw.counts[row].sum() == len(expected)
        whole = sequence.raw_scores(prompts, completion_ids, completion_mask, rows).values[row]
        assert whole.sum() == pytest.approx(output.logits.item(), abs=1e-4)


def test_scores_go_to_the_token_in_which_they_end():
    # The policy reads words; the reward model reads characters, and says 1 of each `c` and 10 of each space.
    words, characters = tiny.word_tokenizer(), tiny.word_tokenizer(words="abcdefghijk ")
    characters.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    c, space = characters("c ")["input_ids"]
    scorer = CompletionScorer(tiny.unigram_reward_model({c: 1.0, space: 10.0}), words, characters)
    # "a b" and " c d c": each space is part of the word after it, whose score is that both are left.
    raw = scorer.raw_scores(*batch(([A, B], [C, D, C]), ([A], [C, C, EOS])))
    both, d = (torch.logit(torch.sigmoid(torch.tensor([score, 10.0])).prod()) for score in (1.0, 0.0))
    expected = torch.tensor([[both, d, both], [both, both, 0]])
    torch.testing.assert_close(raw.values, expected, rtol=0, atol=1e-4)
    assert raw.counts.tolist() == [[2, 2, 2], [2, 2, 1]]


def test_a_token_in_which_no_score_ends_is_neutral():
    # The policy reads characters, the reward model words, of which it likes every one: no token is worse than another.
    words, characters = tiny.word_tokenizer(words=["ab", "cd"]), tiny.tokenizer(vocab_size=260)
    reward = tiny.unigram_reward_model(dict.fromkeys(range(16), 4.0))
    scorer = CompletionScorer(reward, characters, words)
    characters_of = {text: characters(text)["input_ids"] for text in ("ab", " cd", " cd ab")}
    contents = batch((characters_of["ab"], characters_of[" cd"]), (characters_of["ab"], characters_of[" cd ab"]))
    raw = scorer.raw_scores(*contents)
    assert raw.counts.tolist() == [[0, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 1]]
    log_probs = scorer.spread(raw, *contents[1:3], log_sigmoid=True)
    torch.testing.assert_close(log_probs.sum(1), logsigmoid(torch.tensor(4.0)) * torch.tensor([1.0, 2.0]))
    centred = scorer.spread(raw, *contents[1:3], log_sigmoid=True, center=True)
    torch.testing.assert_close(centred, torch.zeros(2, 6))
    assert scorer.places(raw, *contents[1:3]).tolist() == (raw.counts > 0).tolist()


def test_what_the_reward_tokenizer_adds_belongs_to_no_word():
    # A tokenizer that puts EOS at the end by itself: it stands for no text, and is scored as the end of a completion that
    # has ended.
    words, adding = tiny.word_tokenizer(), permuted_tokenizer()
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> $A <eos>", special_tokens=[("<unk>", 2), ("<eos>", EOS)]
    )
    c = adding.convert_tokens_to_ids("c")
    scorer = CompletionScorer(tiny.unigram_reward_model({c: 1.0, EOS: 100.0, 2: 1000.0}), words, adding)
    scores = scorer.raw_scores(*batch(([A], [C, D]), ([A], [C, EOS]))).values
    torch.testing.assert_close(scores, torch.tensor([[1.0, 0], [1, 100]]), rtol=0, atol=1e-4)


def test_a_stop_token_that_is_not_eos_ends_the_text_of_the_reward_model():
    words, permuted = tiny.word_tokenizer(), permuted_tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["e"]})
    model = tiny.unigram_reward_model({EOS: 100.0})
    rows = batch(([A], [C, E]), ([A], [C, D]))
    for stop_token_id, expected in ((E, [[0.0, 100], [0, 0]]), (None, [[0.0, 0], [0, 0]])):
        scorer = CompletionScorer(model, words, permuted, stop_token_id=stop_token_id)
        torch.testing.assert_close(scorer.raw_scores(*rows).values, torch.tensor(expected), rtol=0, atol=1e-4)


def test_messages_get_the_reward_models_own_template():
    words, permuted = tiny.word_tokenizer(), permuted_tokenizer()
    words.chat_template = "a {{ messages[0]['content'] }} b"
    permuted.chat_template = "<unk> {{ messages[0]['content'] }} k k"
    # The completion's text begins with the space that joins it to the prompt.
    expected = [2, *permuted("c k k d e")["input_ids"], EOS]
    model, seen = tiny.unigram_reward_model({token: float(token) for token in range(16)}), []
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
        tiny.unigram_reward_model({permuted_tokenizer().convert_tokens_to_ids("a"): 3.0}),
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


def test_more_tokens_than_the_reward_model_has_positions():
    for family in ("gpt2", "llama"):  # of which the second has no table of positions
        model = token_reward_model(family, vocab_size=300, max_position_embeddings=6)
        scorer = CompletionScorer(model, tiny.word_tokenizer(), tiny.tokenizer(vocab_size=260))
        assert scorer.raw_scores(*batch(([A], [C, D]))).values.shape == (1, 2)
        longer = batch(([A], [C, D, C, D]))
        if family == "llama":
            assert scorer.raw_scores(*longer).values.shape == (1, 4)
            continue
        with pytest.raises(ValueError, match="cannot read a completion: .* 300 embeddings and 6 positions"):
            scorer.raw_scores(*longer)


def test_the_worst_of_an_ensemble_is_among_those_that_have_a_score():
    """One reads words, the other characters, and dislikes one; in either order."""
    words, characters = (
        RawScores(torch.tensor([values]), "token_scores", torch.tensor([counts]))
        for values, counts in (([0.0, 0.0, 4.0, 0.0], [0.0, 0, 1, 0]), ([4.0, -4.0, 5.0, 0.0], [1.0, 1, 1, 0]))
    )
    for members in ((words, characters), (characters, words)):
        worst = worst_of(members)
        assert worst.values.tolist() == [[4, -4, 4, 0]] and worst.counts.tolist() == [[1, 1, 1, 0]]


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
