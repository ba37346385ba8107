"""Which rewards point where a judge would? The policy gradient of the start policy by each reward, beside that by the
judge's own verdicts.

    python benchmarks/gradients.py --corpus detox --data <folder>    # or imdb, or imdb_long

It takes what `detox.py`, `imdb.py` or `imdb_long.py` has prepared. The policy answers prompts once; the answers are cut
into four parts, and of each part's gradient by a reward this measures the cosine to the gradient by the judge's
verdicts on the other three parts. It is small where a reward points elsewhere than the judge, and where it is noisy.
The cosine to the same reward's gradient on the other parts tells how noisy it is, and both together how close the two
directions are without noise (Spearman's correction for attenuation).
"""

import argparse
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from density_report import machine
from detox import DETOX
from imdb import LONG_REVIEWS, REVIEWS
from provenance import commit
from real_density import Corpus, load
from trl_tokenreward import TokenRewardModel
from trl_tokenreward.evaluation.sampler import Answer, AnswerSampler
from trl_tokenreward.nn.masked import zero_masked
from trl_tokenreward.nn.unpadding import padded
from trl_tokenreward.ppo.functional import gae, place_at_last, potential_differences, shape_scores
from trl_tokenreward.reward_model.text_scores import scores_of_ids


PARTS, ANSWERS = 4, 768
ROWS = 48  # of one pass
LAMBDAS = (1.0, 0.95, 0.7, 0.0)
LAYERS = 6  # the last ones, whose weights have a gradient
RESULTS = Path(__file__).parent / "results"


def advantages(sequence: Tensor, tokens: Tensor, prefixes: Tensor, verdicts: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The advantage of every token by each reward. A value model that knows no more than a token's place is taken off.

    Args:
        sequence, verdicts (`Tensor`):
            Scores of whole answers. Shape (B,).
        tokens, prefixes (`Tensor`):
            Raw token scores, and the sequence head's scores of what ends with each token. Shape (B, T).
        mask (`Tensor`):
            Shape (B, T).
    """

    def on_every_token(scores: Tensor) -> Tensor:
        return zero_masked((scores - scores.mean()).unsqueeze(1).expand(mask.shape), mask)

    def credited(rewards: Tensor, lam: float) -> Tensor:
        by_token, _ = gae(rewards, torch.zeros_like(rewards), mask, 1.0, lam)
        means = (by_token * mask).sum(0) / mask.sum(0).clamp(min=1)
        return zero_masked(by_token - means, mask)

    def alike(by_token: Tensor) -> Tensor:
        return by_token / by_token[mask.bool()].std()

    # The defaults of token rewards.
    dense = shape_scores(tokens, mask, signal="token_scores", log_sigmoid=True, scale=0.2, center=True, clip=1.0)
    potential = potential_differences(prefixes, mask)
    both = alike(on_every_token(sequence))
    return {
        "the judge's verdict, on every token": on_every_token(verdicts),
        "sequence score, on every token (GRPO)": on_every_token(sequence),
        "sequence score, on the last token, lambda .95 (PPO before it has values)": credited(
            place_at_last(sequence - sequence.mean(), mask), 0.95
        ),
        "sum of token scores, on every token": on_every_token(dense.sum(1)),
        **{f"potential-based, lambda {lam:g}": credited(potential, lam) for lam in LAMBDAS},
        **{f"token scores, lambda {lam:g}": credited(dense, lam) for lam in LAMBDAS},
        "token scores, lambda .95, and sequence score on every token": alike(credited(dense, 0.95)) + both,
        "token scores, lambda .7, and sequence score on every token": alike(credited(dense, 0.7)) + both,
    }


def gradients(
    policy: torch.nn.Module, prompts: list[list[int]], answers: list[Answer], by_token: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The policy gradient by each of the advantages, of the weights of the last layers in one row.

    The gradient of the log-probabilities at the last hidden states is made once: each advantage only scales it.
    """
    last = policy.config.num_hidden_layers - LAYERS
    weights = [weight for layer in policy.model.layers[last:] for weight in layer.parameters() if weight.dim() == 2]
    policy.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    totals = {name: torch.zeros(sum(weight.numel() for weight in weights)) for name in by_token}
    for first in range(0, len(answers), ROWS):
        rows = range(first, min(first + ROWS, len(answers)))
        ids, mask = padded([prompts[row] + answers[row].ids for row in rows], torch.device("cpu"))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = policy.model(ids, attention_mask=mask).last_hidden_state
            leaves = states.detach().requires_grad_()
            logits = policy.lm_head(leaves)[:, :-1]
        logps = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        (of_states,) = torch.autograd.grad((logps * mask[:, 1:]).sum(), leaves)
        for name, scores in by_token.items():
            scale = torch.zeros(ids.shape)
            for place, row in enumerate(rows):
                start = len(prompts[row]) - 1  # the state before a token gives its probability
                scale[place, start : start + len(answers[row].ids)] = scores[row, : len(answers[row].ids)]
            parts = torch.autograd.grad(states, weights, of_states * scale.unsqueeze(-1), retain_graph=True)
            totals[name] += torch.cat([part.flatten() for part in parts])
    return totals


def agreement(of_parts: list[Tensor], others: list[Tensor]) -> np.ndarray:
    """The cosine of each part's gradient to that of the other parts by `others`. Shape (parts,)."""
    whole = torch.stack(others).sum(0)
    pairs = zip(of_parts, others, strict=True)
    return np.array([float(torch.cosine_similarity(part, whole - other, dim=0)) for part, other in pairs])


def lines_of(found: dict[str, list[Tensor]]) -> Iterator[str]:
    verdicts = next(iter(found.values()))
    own_of_verdicts = agreement(verdicts, verdicts).mean()
    for name, parts in found.items():
        cosines, own = agreement(parts, verdicts), agreement(parts, parts).mean()
        error = cosines.std(ddof=1) / PARTS**0.5
        without_noise = "" if parts is verdicts else f"{cosines.mean() / (own * own_of_verdicts) ** 0.5:.2f}"
        yield f"| {name} | {cosines.mean():.3f} ± {error:.3f} | {own:.3f} | {without_noise} |"


def main() -> None:
    corpora: dict[str, Corpus] = {corpus.name: corpus for corpus in (DETOX, REVIEWS, LONG_REVIEWS)}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", choices=list(corpora), default="detox")
    parser.add_argument("--data", type=Path, required=True, help="Folder with the data.")
    parser.add_argument("--output", type=Path, help="Folder with what was prepared.")
    arguments = parser.parse_args()
    corpus = corpora[arguments.corpus]
    folder = arguments.output or Path("runs") / corpus.name
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "start_policy", trust_remote_code=False)
    policy = load(AutoModelForCausalLM, folder / "start_policy").eval()
    texts = corpus.prompts(arguments.data, tokenizer)[0].shuffle(seed=0).select(range(ANSWERS))
    sampler = AnswerSampler(
        tokenizer,
        texts,
        response_length=corpus.response_length,
        stop_token_id=corpus.stop_token,
        batch_size=64,
        progress=True,
    )
    prompts = [tokenizer(text)["input_ids"] for text in texts["prompt"]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answers = sampler(policy)
        scores = scores_of_ids(
            load(TokenRewardModel, folder / "reward_model"),
            [prompt + answer.ids for prompt, answer in zip(prompts, answers, strict=True)],
            batch_size=64,
        )
    _, mask = padded([answer.ids for answer in answers], torch.device("cpu"))
    tokens, prefixes = torch.zeros(mask.shape), torch.zeros(mask.shape)
    for row, (prompt, answer, of_ids) in enumerate(zip(prompts, answers, scores, strict=True)):
        tokens[row, : len(answer.ids)] = torch.tensor(of_ids.token_scores[len(prompt) :])
        prefixes[row, : len(answer.ids)] = torch.tensor(of_ids.prefix_scores[len(prompt) :])
    judged = next(iter(corpus.judges(arguments.data).values()))(sampler.prompts, [answer.text for answer in answers])
    # A win rate goes by ranks.
    verdicts = torch.tensor(np.argsort(np.argsort(judged)) / len(judged), dtype=torch.float32)
    by_token = advantages(torch.tensor([of_ids.score for of_ids in scores]), tokens, prefixes, verdicts, mask)
    found: dict[str, list[Tensor]] = {name: [] for name in by_token}
    for part in range(PARTS):
        chosen = slice(part * len(answers) // PARTS, (part + 1) * len(answers) // PARTS)
        of_rows = {name: scale[chosen] for name, scale in by_token.items()}
        for name, gradient in gradients(policy, prompts[chosen], answers[chosen], of_rows).items():
            found[name].append(gradient)
        print(f"Part {part + 1} of {PARTS} is done.", flush=True)
    lines = [
        f"# Where rewards point, {corpus.name}",
        "",
        f"`python benchmarks/gradients.py --corpus {corpus.name} --data <folder>`, seed 0, {date.today()}, commit "
        f"{commit()}, {machine()}.",
        "",
        f"The gradient of the start policy's last {LAYERS} layers by each reward, on {ANSWERS // PARTS} answers, "
        f"beside that by the judge's verdicts on {ANSWERS - ANSWERS // PARTS} others: the mean cosine of {PARTS} such "
        "parts, with its standard error. Beside it is the cosine to the same reward's gradient on the others, and what "
        "the first would be without the noise of both.",
        "",
        "| reward | cosine to the judge's | to its own | without noise |",
        "| --- | --- | --- | --- |",
        *lines_of(found),
    ]
    path = RESULTS / f"gradients_{corpus.name}.md"
    path.write_text("\n".join(lines) + "\n")
    print(f"{path} is written.")


if __name__ == "__main__":
    main()
