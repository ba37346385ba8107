import pytest
import torch

import tiny
from trl_tokenreward.ppo.forward import completion_logps, completion_values
from trl_tokenreward.ppo.prompts import DataCollatorForPrompts, Prompts, PromptSource
from trl_tokenreward.ppo.sampling import generate, sample, uniforms


pytestmark = pytest.mark.any_trl


FAMILIES = ["llama", "qwen2", "gpt2", "gpt_neox"]


def prompts(*rows, pad_token_id=0):
    return Prompts(*DataCollatorForPrompts(pad_token_id)([{"input_ids": row} for row in rows]).values())


def concatenated(prompt_batch, completions):
    return torch.cat([prompt_batch.ids, completions.ids], 1), torch.cat([prompt_batch.mask, completions.mask], 1)


def test_collator_pads_left_and_says_what_is_real_even_if_pad_is_a_real_token():
    batch = DataCollatorForPrompts(pad_token_id=5)([{"input_ids": [5, 6]}, {"input_ids": [7]}])
    assert batch["input_ids"].tolist() == [[5, 6], [5, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1], [0, 1]]


def test_a_row_of_random_numbers_depends_on_its_number_alone():
    whole = uniforms((1, 2), range(4), 3)
    assert torch.equal(whole[2:], uniforms((1, 2), range(2, 4), 3))
    assert not torch.equal(whole[:2], whole[2:])
    assert not torch.equal(whole, uniforms((1, 3), range(4), 3))


def test_sample_inverts_the_distribution_function():
    logits = torch.tensor([[0.5, 0.0, 0.3, 0.2]]).log().expand(6, 4)
    uniform = torch.tensor([0.0, 0.49, 0.51, 0.79, 0.81, 0.9999999])
    tokens, logps = sample(logits, 1.0, uniform)
    assert tokens.tolist() == [0, 0, 2, 2, 3, 3]  # 1 has probability 0 and is never drawn
    torch.testing.assert_close(logps.exp(), torch.tensor([0.5, 0.5, 0.3, 0.3, 0.2, 0.2]))


def test_sample_at_temperature_zero_is_greedy():
    assert sample(torch.tensor([[1.0, 3.0, 2.0]]), 0.0, torch.tensor([0.99]))[0].tolist() == [1]


@pytest.mark.parametrize("vocab_size", [30, 256, 700])  # less than a block, one, and two with a rest
def test_sampling_follows_the_distribution_at_the_temperature(vocab_size):
    torch.manual_seed(0)
    logits = torch.randn(vocab_size) * 2
    draws = 20_000
    tokens, _ = sample(logits.expand(draws, vocab_size), 0.7, uniforms((0,), range(1), draws)[0])
    assert chi_square_p_value(tokens, torch.softmax(logits.double() / 0.7, -1)) > 0.001
    # The test has the power to tell: of draws at another temperature it says no.
    others, _ = sample(logits.expand(draws, vocab_size), 0.75, uniforms((0,), range(1), draws)[0])
    assert chi_square_p_value(others, torch.softmax(logits.double() / 0.7, -1)) < 1e-6


def chi_square_p_value(tokens, probabilities):
    expected = probabilities * len(tokens)
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    assert not counts[expected == 0].any()
    often = expected >= 5  # the approximation wants five of each
    observed, expected = counts[often], expected[often]
    if len(tokens) - expected.sum() >= 5:
        observed = torch.cat([observed, len(tokens) - observed.sum()[None]])
        expected = torch.cat([expected, len(tokens) - expected.sum()[None]])
    statistic = ((observed - expected) ** 2 / expected).sum()
    degrees = torch.tensor(len(expected) - 1.0, dtype=torch.float64)
    return torch.special.gammaincc(degrees / 2, statistic / 2)


@pytest.mark.parametrize("vocab_size", [3, 256, 257, 1000])
def test_sampling_is_the_inverse_of_the_whole_distribution_function(vocab_size):
    torch.manual_seed(1)
    logits = torch.randn(vocab_size) * 4
    logits[torch.rand(vocab_size) < 0.3] = -torch.inf  # at both ends of the distribution too
    logits[0] = logits[-1] = -torch.inf
    logits[1] = 2.0
    cumulative = torch.softmax(logits.double(), -1).cumsum(-1)
    uniform = torch.cat([torch.rand(5000, dtype=torch.float64), torch.tensor([0.0, 1 - 2**-53])])
    tokens, logps = sample(logits.expand(len(uniform), -1), 1.0, uniform)
    torch.testing.assert_close(logps.double(), torch.log_softmax(logits.double(), -1)[tokens], rtol=0, atol=2e-6)
    expected = torch.searchsorted(cumulative, uniform, right=True).clamp(max=vocab_size - 1)
    far = (cumulative.unsqueeze(0) - uniform.unsqueeze(1)).abs().min(1).values > 1e-6  # else rounding may decide
    assert far.float().mean() > 0.95
    assert torch.equal(tokens[far], expected[far])
    assert torch.isfinite(logps).all()  # what has no probability is never drawn


def test_what_is_generated_follows_the_models_own_distribution():
    """The whole decode loop, first and second token, with rows that leave the batch."""
    model = tiny.bigram_lm({5: {3: 0.2, 1: 0.5, 6: 0.3}, 3: {3: 0.1, 7: 0.9}, 6: {1: 0.6, 4: 0.4}}).eval()
    rows = 8000
    batch = prompts(*[[5]] * rows)
    completions = generate(
        model, batch, uniforms((4,), range(rows), 2), temperature=1.0, stop_token_id=1, pad_token_id=0
    )
    probabilities = torch.zeros(16, dtype=torch.float64)
    probabilities[[3, 1, 6]] = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    assert chi_square_p_value(completions.ids[:, 0], probabilities) > 0.001
    for first, seconds in {3: {3: 0.1, 7: 0.9}, 6: {1: 0.6, 4: 0.4}}.items():
        probabilities = torch.zeros(16, dtype=torch.float64)
        for token, probability in seconds.items():
            probabilities[token] = probability
        assert chi_square_p_value(completions.ids[completions.ids[:, 0] == first, 1], probabilities) > 0.001


@pytest.mark.parametrize("family", FAMILIES)
def test_generated_log_probabilities_are_those_of_a_full_forward_pass(family):
    model = tiny.causal_lm(family).eval()
    batch = prompts([5, 6, 7], [8], [9, 10])
    completions = generate(
        model, batch, uniforms((0,), range(3), 6), temperature=0.8, stop_token_id=None, pad_token_id=0
    )
    assert completions.mask.all() and not completions.ended.any()
    with torch.no_grad():
        logps = completion_logps(model, *concatenated(batch, completions), 6, 0.8)
    torch.testing.assert_close(completions.per_token_logps, logps, rtol=0, atol=2e-6)
    # The plain formula, one row at a time and without padding: the index contract.
    for row in range(3):
        prompt = batch.ids[row][batch.mask[row].bool()]
        with torch.no_grad():
            logits = model(torch.cat([prompt, completions.ids[row]])[None]).logits[0].double() / 0.8
        expected = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        picked = expected.gather(-1, completions.ids[row][:, None]).squeeze(-1)
        torch.testing.assert_close(logps[row].double(), picked, rtol=0, atol=1e-5)


def test_completions_stop_at_the_stop_token_and_do_not_depend_on_the_batch():
    model = tiny.causal_lm().eval()
    batch = prompts([5, 6, 7], [8], [9, 10], [11, 12, 13, 14])
    kwargs = {"temperature": 1.5, "pad_token_id": 0}
    free = generate(model, batch, uniforms((3,), range(4), 12), stop_token_id=None, **kwargs)
    stop = int(free.ids[1, 4])  # so that row 1 ends within five tokens
    completions = generate(model, batch, uniforms((3,), range(4), 12), stop_token_id=stop, **kwargs)
    for row in range(4):
        ids = free.ids[row].tolist()
        expected = ids[: ids.index(stop) + 1] if stop in ids else ids
        assert completions.ids[row][completions.mask[row].bool()].tolist() == expected
        assert completions.ended[row] == (stop in ids)
        assert (completions.ids[row][~completions.mask[row].bool()] == 0).all()
        alone = generate(
            model,
            Prompts(batch.ids[row : row + 1], batch.mask[row : row + 1]),
            uniforms((3,), range(row, row + 1), 12),
            stop_token_id=stop,
            **kwargs,
        )
        assert alone.ids[0].tolist() == expected


def test_the_generation_config_has_no_say():
    model = tiny.causal_lm().eval()
    arguments = (prompts([5, 6, 7]), uniforms((0,), range(1), 20))
    plain = generate(model, *arguments, temperature=1.0, stop_token_id=None, pad_token_id=0)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.max_new_tokens = 2
    changed = generate(model, *arguments, temperature=1.0, stop_token_id=None, pad_token_id=0)
    assert torch.equal(plain.ids, changed.ids) and torch.equal(plain.per_token_logps, changed.per_token_logps)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_read_before_each_token_and_the_final_one_after_the_last(family):
    model = tiny.sequence_classifier(family).eval()
    prompt_batch = prompts([5, 6, 7], [8])
    input_ids = torch.cat([prompt_batch.ids, torch.tensor([[9, 10], [11, 0]])], 1)
    attention_mask = torch.cat([prompt_batch.mask, torch.tensor([[1, 1], [1, 0]])], 1)
    with torch.no_grad():
        values, final = completion_values(model, input_ids, attention_mask, 2)
        backbone = getattr(model, model.base_model_prefix)

        def value_after(*ids):
            return model.score(backbone(torch.tensor([ids])).last_hidden_state[0, -1]).squeeze(-1)

        expected = [value_after(5, 6, 7), value_after(5, 6, 7, 9), value_after(8)]
    torch.testing.assert_close(torch.stack([*values[0], values[1, 0]]), torch.stack(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(final[0], value_after(5, 6, 7, 9, 10).detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(final[1], value_after(8, 11).detach(), rtol=0, atol=1e-6)


def dataset(size=5):
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": [[i] for i in range(size)]})


def numbers(rows):
    return [row["input_ids"][0] for row in rows]


def test_updates_pass_over_the_data_in_shuffled_passes_without_a_ragged_batch():
    source = PromptSource(dataset(5), batch_size=3, seed=0)
    seen = [n for update in range(5) for n in numbers(source.rows(update))]
    assert [sorted(seen[i : i + 5]) for i in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3
    assert len({tuple(seen[i : i + 5]) for i in (0, 5, 10)}) > 1
    assert numbers(PromptSource(dataset(5), 3, seed=0).rows(3)) == seen[9:12]  # nothing needs to be remembered
    assert [numbers(PromptSource(dataset(5), 3, seed=s).rows(0)) for s in range(4)] != [seen[:3]] * 4


def test_a_batch_may_be_larger_than_the_data():
    assert sorted(numbers(PromptSource(dataset(2), 4, seed=0).rows(0))) == [0, 0, 1, 1]


def test_streams_are_read_in_order_and_resumed_by_position():
    source = PromptSource(dataset(5).to_iterable_dataset(), batch_size=3, seed=0)
    assert [numbers(source.rows(update)) for update in range(3)] == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]
    assert numbers(PromptSource(dataset(5).to_iterable_dataset(), 3, seed=0).rows(2)) == [1, 2, 3]
