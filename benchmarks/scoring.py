"""Time of a score for every token, compared with one score for the sequence.

    python benchmarks/scoring.py

A sequence classifier and a token reward model around the same backbone read the same batches in turns. The cost is the
ratio of their times, batch by batch. `score_texts` is measured beside the least that scores texts with the classifier:
the same texts tokenized at once, padded in batches of like length, read, and the scores fetched. The table is printed
and written to `benchmarks/results/scoring.md`. It takes about ten minutes on two cores; on a machine with a GPU it runs
there.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median, quantiles

import torch
import transformers
from rich.console import Console
from rich.markdown import Markdown
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from trl_tokenreward import TokenRewardModel


ROOT = Path(__file__).resolve().parents[1]
LIMIT = 1.05
SECONDS = 10
VOCABULARY = 8192
PAD, EOS, UNKNOWN, FIRST_WORD = 0, 1, 2, 3


@dataclass(frozen=True)
class Setting:
    """A backbone, and batches of `batch` rows, the longest of `length` tokens. `padded`: the others have between a
    quarter of that and all of it, with padding on the right and an attention mask; else all are equally long, without
    one."""

    hidden: int
    layers: int
    batch: int
    length: int
    padded: bool

    def __str__(self) -> str:
        rows = "padded" if self.padded else "full"
        return f"hidden {self.hidden}, {self.layers} layers, {self.batch} × {self.length}, {rows}"


SETTINGS = {
    f"{hidden}x{layers}-{length}{'-padded' if padded else ''}": Setting(hidden, layers, 8, length, padded)
    for hidden, layers in ((128, 4), (512, 8))
    for length in (128, 512)
    for padded in (False, True)
}
SETTINGS["tiny"] = Setting(16, 2, 2, 12, True)  # to see that all this works


def make_models(setting: Setting, seed: int, device: str) -> tuple[torch.nn.Module, TokenRewardModel]:
    """A sequence classifier, and a token reward model made of its modules."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=setting.hidden,
        intermediate_size=4 * setting.hidden,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.hidden // min(setting.hidden, 64),
        max_position_embeddings=setting.length,
        num_labels=1,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
        use_cache=False,  # else the classifier fills a cache that nothing reads
    )
    classifier = AutoModelForSequenceClassification.from_config(config).to(device).eval()
    return classifier, TokenRewardModel.from_backbone(classifier, copy=False)


def make_batch(setting: Setting, generator: torch.Generator) -> dict[str, torch.Tensor]:
    shape = setting.batch, setting.length
    input_ids = torch.randint(FIRST_WORD, VOCABULARY, shape, generator=generator)
    if not setting.padded:
        return {"input_ids": input_ids}
    lengths = torch.randint(setting.length // 4, setting.length + 1, (setting.batch, 1), generator=generator)
    lengths[0] = setting.length
    real = torch.arange(setting.length) < lengths
    return {"input_ids": input_ids.where(real, PAD), "attention_mask": real.long()}


def make_texts(setting: Setting, count: int, generator: torch.Generator) -> list[str]:
    lengths = torch.randint(setting.length // 4, setting.length, (count,), generator=generator).tolist()
    rows = [torch.randint(FIRST_WORD, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    return [" ".join(f"w{i}" for i in row) for row in rows]


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": PAD, "<eos>": EOS, "<unk>": UNKNOWN, **{f"w{i}": i for i in range(FIRST_WORD, VOCABULARY)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def score_sequences(
    classifier: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, texts: list[str], batch_size: int
) -> list[float]:
    """One score for each text, with the classifier alone."""
    encodings = tokenizer([text + tokenizer.eos_token for text in texts])["input_ids"]
    by_length = sorted(range(len(texts)), key=lambda index: len(encodings[index]))
    scores = [0.0] * len(texts)
    for start in range(0, len(texts), batch_size):
        rows = by_length[start : start + batch_size]
        batch = tokenizer.pad(
            {"input_ids": [encodings[index] for index in rows]}, padding_side="right", return_tensors="pt"
        )
        logits = classifier(**batch.to(classifier.device)).logits.squeeze(-1).tolist()
        for index, score in zip(rows, logits, strict=True):
            scores[index] = score
    return scores


def in_turns(runs: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each run, `repeats` times and for `SECONDS` at least, the first to go changing each time. Two
    rounds to warm up. On a CPU it is processor time, so that what else runs on the machine counts little."""

    def clock() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    times: dict[str, list[float]] = {name: [] for name in runs}
    begin, repeat = clock(), 0
    while repeat < repeats + 2 or clock() - begin < SECONDS:
        for name in list(runs) if repeat % 2 == 0 else reversed(runs):
            start = clock()
            runs[name]()
            if repeat >= 2:
                times[name].append(1000 * (clock() - start))
        repeat += 1
    return times


@torch.no_grad()
def measure(setting: Setting, repeats: int, seed: int, device: str) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of one batch (`forward`) and, of padded settings, of four batches of texts (`texts`), for the
    classifier and ours."""
    classifier, model = make_models(setting, seed, device)
    generator = torch.Generator().manual_seed(seed)
    batch = {name: tensor.to(device) for name, tensor in make_batch(setting, generator).items()}
    output = model(**batch)
    torch.testing.assert_close(output.logits, classifier(**batch).logits, rtol=1e-4, atol=1e-5)
    assert output.token_scores.shape == output.prefix_scores.shape == batch["input_ids"].shape
    forward = in_turns({"sequence": lambda: classifier(**batch), "tokens": lambda: model(**batch)}, repeats, device)

    if not setting.padded:  # texts have lengths of their own, so they are read once for each size
        return {"forward": forward}
    texts, tokenizer = make_texts(setting, 4 * setting.batch, generator), make_tokenizer()
    sequences = lambda: score_sequences(classifier, tokenizer, texts, setting.batch)  # noqa: E731
    tokens = lambda: model.score_texts(texts, tokenizer, batch_size=setting.batch)  # noqa: E731
    torch.testing.assert_close([scores.score for scores in tokens()], sequences(), rtol=1e-4, atol=1e-5)
    return {"forward": forward, "texts": in_turns({"sequence": sequences, "tokens": tokens}, -(-repeats // 4), device)}


def spread(values: list[float], digits: int) -> str:
    """Median, and where the middle half of the values lies."""
    low, middle, high = quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def row(name: str, times: dict[str, list[float]], limit: float | None) -> str:
    ratios = [ours / theirs for ours, theirs in zip(times["tokens"], times["sequence"], strict=True)]
    verdict = "" if limit is None else " ✓" if median(ratios) <= limit else f" **> {limit}**"
    times = [spread(times[arm], 2) for arm in ("sequence", "tokens")]
    return f"| {name} | {' | '.join(times)} | {spread(ratios, 3)}{verdict} | {len(ratios)} |"


def report(results: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """The tables, in Markdown."""
    lines = [
        f"| one batch | one score, ms | a score for each token and prefix, ms | ratio (at most {LIMIT}) | times |",
        "| --- | --- | --- | --- | --- |",
        *(row(str(SETTINGS[name]), result["forward"], LIMIT) for name, result in results.items()),
        "",
        "| four batches of texts, tokenization included | one score, ms | `score_texts`, ms | ratio | times |",
        "| --- | --- | --- | --- | --- |",
        *(
            row(str(SETTINGS[name]).rpartition(",")[0], result["texts"], None)
            for name, result in results.items()
            if "texts" in result
        ),
        "",
    ]
    return "\n".join(lines)


def about(options: argparse.Namespace, arguments: list[str], device: str) -> str:
    command = " ".join(["python benchmarks/scoring.py", *arguments])
    threads = torch.get_num_threads()
    where = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{platform.machine()}, {threads} threads, load {os.getloadavg()[0]:.1f} at the end"
    )
    return (
        f"`{command}`, {date.today()}, seed {options.seed}. {where}; Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}. Llama, float32, vocabulary {VOCABULARY}. "
        f"{'Wall clock' if device == 'cuda' else 'Processor time'}, median (middle half); the ratio is taken turn by "
        "turn, the two models on the same batch with the same weights. Padded: rows of a quarter of the length to all "
        "of it, with an attention mask; full: without one."
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS)[:-1])
    parser.add_argument("--repeats", type=int, default=10, help="Least number of turns in each setting.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "scoring.md")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    console = Console()
    results = {}
    for name in options.settings:
        with console.status(str(SETTINGS[name])):
            results[name] = measure(SETTINGS[name], options.repeats, options.seed, device)
    text = report(results)
    console.print(Markdown(text))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(
        "# A score for every token beside one for the "
        f"sequence\n\n{about(options, sys.argv[1:] if arguments is None else arguments, device)}\n\n{text}",
        encoding="utf-8",
    )
    console.print(f"Written to {options.output}.")


if __name__ == "__main__":
    main()
