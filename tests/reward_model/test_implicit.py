"""Implicit rewards: what a language model says of a token beside its reference."""

import copy
import math

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    BloomForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import ppo_runs
import tiny
from trl_tokenreward import ImplicitReward, TokenRewardModel, TokenScorer, score_dataset
from trl_tokenreward.reward_model.readout import has_sequence_score, has_token_scores, token_scores


# Padding on either side, on both, and a row of one token.
INPUT_IDS = torch.tensor([[0, 0, 5, 6, 7, 8, 9], [5, 9, 8, 7, 6, 0, 0], [0, 7, 7, 8, 5, 6, 0], [0, 0, 0, 4, 0, 0, 0]])
ATTENTION_MASK = (INPUT_IDS != 0).long()
BETA = 0.3


def models(**kwargs):
    return (ppo_runs.scaled(tiny.causal_lm(seed=seed, **kwargs)).eval() for seed in (1, 2))


def log_probabilities(model, ids):
    """Of each token but the first, from a full forward pass over the text alone."""
    with torch.no_grad():
        logps = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return logps.gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)


def adapted():
    """A model with an adapter that does something."""
    model = ppo_runs.lora(ppo_runs.scaled(tiny.causal_lm(seed=1)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rewards_are_differences_of_log_probabilities(family):
    model, ref_model = models(family=family)
    scores = ImplicitReward(model, ref_model, BETA).token_scores(INPUT_IDS, ATTENTION_MASK)
    for row, (ids, mask) in enumerate(zip(INPUT_IDS, ATTENTION_MASK.bool(), strict=True)):
        ids = ids[mask].tolist()
        expected = BETA * (log_probabilities(model, ids) - log_probabilities(ref_model, ids))
        # Nothing predicts the first token.
        torch.testing.assert_close(scores[row][mask], torch.cat([torch.zeros(1), expected]), rtol=1e-4, atol=1e-5)
        assert len(ids) == 1 or expected.abs().max() > 0.05
        assert not scores[row][~mask].any()


def test_their_sum_is_the_log_ratio_of_the_completion():
    model, ref_model = models()
    prompt, completion = [5, 6, 7], [8, 9, 3, 1]
    ids = torch.tensor([prompt + completion])
    scores = ImplicitReward(model, ref_model, BETA).token_scores(ids, torch.ones_like(ids), start=len(prompt))
    # DPO's implicit reward (Rafailov et al., 2023), as its loss computes it: labels over the completion alone.
    labels = torch.tensor([[-100] * len(prompt) + completion])
    with torch.no_grad():
        losses = [m(input_ids=ids, labels=labels).loss * len(completion) for m in (model, ref_model)]
    assert scores.sum().item() == pytest.approx(BETA * float(losses[1] - losses[0]), rel=1e-4)
    assert not scores[0, : len(prompt)].any()


def test_columns_before_the_start_change_nothing_after_it():
    reward = ImplicitReward(*models())
    whole = reward.token_scores(INPUT_IDS, ATTENTION_MASK)
    torch.testing.assert_close(reward.token_scores(INPUT_IDS, ATTENTION_MASK, start=3)[:, 3:], whole[:, 3:])


def test_an_adapter_off_is_the_reference():
    model = adapted()
    base = model.get_base_model()
    one = ImplicitReward(model, beta=BETA)
    parameters = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in one.parameters()) == parameters  # no second copy
    merged, ref_model = copy.deepcopy(model).merge_and_unload(), copy.deepcopy(model).unload()
    two = ImplicitReward(merged, ref_model, BETA)
    scores = one.token_scores(INPUT_IDS, ATTENTION_MASK)
    torch.testing.assert_close(scores, two.token_scores(INPUT_IDS, ATTENTION_MASK), rtol=1e-4, atol=1e-5)
    assert scores.abs().max() > 0.05
    # The adapter is on again, and gets no gradients.
    ids = INPUT_IDS[:1, 2:]
    torch.testing.assert_close(base(input_ids=ids).logits, merged(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in model.parameters())


def test_it_is_frozen_without_dropout_and_precise():
    model, ref_model = models(attention_dropout=0.5)
    reward = ImplicitReward(model.train().to(torch.bfloat16), ref_model.train().to(torch.bfloat16))
    first, second = (reward.token_scores(INPUT_IDS, ATTENTION_MASK) for _ in range(2))
    assert torch.equal(first, second)
    assert first.dtype == torch.float32
    assert not first.requires_grad
    assert not any(p.requires_grad for p in reward.parameters())


def test_it_is_read_as_a_reward_model_of_tokens():
    reward = ImplicitReward(*models())
    assert has_token_scores(reward)
    assert not has_sequence_score(reward)
    read = token_scores(reward, INPUT_IDS, ATTENTION_MASK)
    assert torch.equal(read, reward.token_scores(INPUT_IDS, ATTENTION_MASK))


def test_its_room_is_that_of_the_smaller_model():
    small, large = tiny.causal_lm(max_position_embeddings=32), tiny.causal_lm(max_position_embeddings=64)
    for pair in ((small, large), (large, small)):
        assert ImplicitReward(*map(copy.deepcopy, pair)).config.max_position_embeddings == 32


@pytest.mark.parametrize("beta", [0, -0.1, math.nan, math.inf, "0.1", None, True])
def test_beta_is_positive_and_finite(beta):
    with pytest.raises(ValueError, match="`beta` must be a positive, finite number"):
        ImplicitReward(*models(), beta)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny.sequence_classifier(),
        lambda: TokenRewardModel.from_backbone(tiny.causal_lm()),
        lambda: tiny.causal_lm().model,
        lambda: torch.nn.Linear(2, 2),
        lambda: BertForMaskedLM(BertConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)),
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ),
        lambda: None,
    ],
)
def test_both_are_causal_language_models(make):
    with pytest.raises(TypeError, match="`model` is a .*causal language model"):
        ImplicitReward(make(), tiny.causal_lm())
    if make() is not None:
        with pytest.raises(TypeError, match="`ref_model` is a .*causal language model"):
            ImplicitReward(tiny.causal_lm(), make())


def test_the_reference_is_another_model_of_the_same_vocabulary():
    model, _ = models()
    with pytest.raises(ValueError, match="`ref_model` is required, unless `model` has an adapter"):
        ImplicitReward(model)
    with pytest.raises(ValueError, match="one model below them"):
        ImplicitReward(model, model)
    with_adapter = adapted()
    with pytest.raises(ValueError, match="one model below them.*pass `ref_model=None`"):
        ImplicitReward(with_adapter, with_adapter.get_base_model())
    with pytest.raises(ValueError, match="`model` has a vocabulary of 300 and `ref_model` of 310"):
        ImplicitReward(model, tiny.causal_lm(vocab_size=310))


def test_an_adapter_of_virtual_tokens_is_refused():
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="`model` has an adapter of the type PROMPT_TUNING"):
        ImplicitReward(get_peft_model(tiny.causal_lm(), config))


def test_texts_are_shown_token_by_token():
    tokenizer = tiny.tokenizer()
    reward = ImplicitReward(*models())
    row = {"prompt": "the quick", "text": " brown fox"}
    [shown] = score_dataset([row], TokenScorer(reward, tokenizer)).rows
    ids = torch.tensor([tokenizer("the quick brown fox<eos>")["input_ids"]])
    start = len(tokenizer("the quick")["input_ids"])
    expected = reward.token_scores(ids, torch.ones_like(ids), start)[0, start:]
    [text] = shown.texts
    assert text.series["score"] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)
    assert "sequence score" not in text.numbers
    with pytest.raises(ValueError, match="no trained sequence head"):
        TokenScorer(reward, tokenizer, signal="sequence_score")


def test_the_reference_of_dpo_on_an_adapter_is_its_copy():
    """TRL's DPOTrainer keeps the adapter that it goes on from as `"ref"`."""
    pytest.importorskip("peft")
    model = adapted()
    model.add_adapter("ref", model.peft_config["default"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".default." in name:
                model.get_parameter(name.replace(".default.", ".ref.")).copy_(parameter)
    scores = ImplicitReward(model, beta=BETA).token_scores(INPUT_IDS, ATTENTION_MASK)
    assert not scores.any() and model.active_adapters == ["default"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.default" in name:
                parameter.mul_(2)
    reward = ImplicitReward(model, beta=BETA)
    trained, base = copy.deepcopy(model), copy.deepcopy(model)
    base.set_adapter("ref")
    expected = ImplicitReward(trained, base, beta=BETA).token_scores(INPUT_IDS, ATTENTION_MASK)
    torch.testing.assert_close(reward.token_scores(INPUT_IDS, ATTENTION_MASK), expected)
    assert expected.any()
    model.set_adapter("ref")
    with pytest.raises(ValueError, match="the reference of DPO, and \\['ref'\\] active: activate"):
        ImplicitReward(model, beta=BETA)


@pytest.mark.parametrize("config", [BloomConfig(vocab_size=16, hidden_size=8, n_layer=1, n_head=1)])
def test_models_that_do_not_say_how_far_they_read(config):
    model, ref_model = (BloomForCausalLM(config).eval() for _ in range(2))
    scored = score_dataset([{"text": "a b"}], TokenScorer(ImplicitReward(model, ref_model), tiny.word_tokenizer()))
    assert len(scored.rows) == 1
