"""Time of the alignment: by length of the texts, compared with difflib, and for all of HH-RLHF.

    python benchmarks/alignment.py --data <folder>

The folder holds `hh-rlhf-harmless-base-test.jsonl.gz` (Anthropic/hh-rlhf, harmless-base, test split). Its dialogues,
one after the other, are cut to texts of 64 to 8,192 tokens, and every tenth word of them is edited. Then its rows are
repeated to as many as HH-RLHF has, and prepared as `TokenRewardTrainer` does it: tokens, alignment and masks, through
`datasets.map` with workers. A byte-level BPE tokenizer is trained on the spot. The table is printed and written to
`benchmarks/results/alignment.md`. It takes about three minutes on two cores.
"""

import argparse
import difflib
import gzip
import json
import os
import platform
import random
import resource
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import datasets
from datasets import Dataset
from rapidfuzz.distance import Indel
from rich.console import Console
from rich.markdown import Markdown
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from trl_tokenreward import align_edits
from trl_tokenreward.data.preprocessing import prepare_dataset
from trl_tokenreward.edits.alignment import TokenizedText, align_tokenized


ROOT = Path(__file__).resolve().parents[1]
FILE = "hh-rlhf-harmless-base-test.jsonl.gz"
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
EDITED = 0.1
HH_RLHF_PAIRS = 160_000
SECONDS_AIMED_AT = 180


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")


def cut_texts(texts: list[str], length: int, count: int, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """`count` texts of `length` tokens each, spread over all that there is."""
    whole = "".join(texts)
    cut = []
    for number in range(count):
        start = whole.find(" ", number * len(whole) // count)
        # No token stands for more than twenty characters on average.
        piece = whole[start : start + 20 * length]
        offsets = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if len(offsets) < length:
            raise ValueError(f"The data do not hold {count} texts of {length} tokens.")
        cut.append(piece[: offsets[length - 1][1]])
    return cut


def edit(text: str, vocabulary: list[str], rng: random.Random) -> str:
    """Deletes, replaces or doubles by another word every tenth word, at random places."""
    edited = []
    for word in text.split(" "):
        kind = rng.choice(["delete", "insert", "replace"]) if rng.random() < EDITED else "keep"
        new = rng.choice(vocabulary)
        edited += {"keep": [word], "delete": [], "insert": [word, new], "replace": [new]}[kind]
    return " ".join(edited)


def tokenize(text: str, tokenizer: PreTrainedTokenizerFast) -> TokenizedText:
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return TokenizedText(tokens["input_ids"], tokens["offset_mapping"])


def milliseconds(run: Callable[[], object], least: float = 0.02) -> float:
    """Processor time, so that what else runs on the machine counts little: the best of three, each long enough."""
    best, times = float("inf"), 1
    for _ in range(3):
        start = time.process_time()
        for _ in range(times):
            run()
        took = time.process_time() - start
        best = min(best, took / times)
        times = max(1, min(1000, round(least / best)))
    return 1000 * best


def measure_lengths(
    texts: list[str], lengths: list[int], count: int, seed: int, tokenizer: PreTrainedTokenizerFast, console: Console
) -> dict[int, dict[str, list[float]]]:
    """Milliseconds of each way for each of `count` pairs of each length."""
    rng = random.Random(seed)
    vocabulary = "".join(texts).split(" ")
    results = {}
    for length in lengths:
        results[length] = {"align_edits": [], "align_tokenized": [], "rapidfuzz": [], "difflib": []}
        for original in cut_texts(texts, length, count, tokenizer):
            edited = edit(original, vocabulary, rng)
            tokens = tokenize(original, tokenizer), tokenize(edited, tokenizer)
            words = original.split(), edited.split()
            runs = {
                "align_edits": lambda texts=(original, edited): align_edits(*texts, tokenizer),
                "align_tokenized": lambda given=(original, edited, *tokens): align_tokenized(*given),
                "rapidfuzz": lambda words=words: Indel.opcodes(*words),
                "difflib": lambda words=words: difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes(),
            }
            for name, run in runs.items():
                results[length][name].append(milliseconds(run))
        medians = ", ".join(f"{name} {median(times):.2f} ms" for name, times in results[length].items())
        console.print(f"{length} tokens: {medians}")
    return results


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in usage)


def measure_preparation(
    rows: list[dict[str, str]], pairs: int, workers: int, max_length: int, tokenizer: PreTrainedTokenizerFast
) -> dict[str, float | str]:
    """Seconds that `TokenRewardTrainer` needs for its data, and the least: the same texts through the tokenizer
    alone."""
    dataset = Dataset.from_list(rows).select([n % len(rows) for n in range(pairs)])
    caching = datasets.is_caching_enabled()
    datasets.disable_caching()  # the measure is of work done, not of what an earlier run left
    try:
        start, start_processor = time.perf_counter(), processor_seconds()
        _, dropped = prepare_dataset(dataset, tokenizer, max_length=max_length, num_proc=workers)
        result = {
            "wall": time.perf_counter() - start,
            "processor": processor_seconds() - start_processor,
            "kept": dropped.describe(),
        }
    finally:
        if caching:
            datasets.enable_caching()
    few = rows[: min(pairs, 1000)]
    start_processor = processor_seconds()
    for row in few:
        tokenizer([row["chosen"], row["rejected"]], return_offsets_mapping=True)
    result["tokenizer"] = (processor_seconds() - start_processor) * pairs / len(few)
    return result


def spread(values: list[float]) -> str:
    digits = 3 if median(values) < 1 else 1
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def report(results: dict[int, dict[str, list[float]]], preparation: dict, pairs: int, workers: int) -> str:
    """The tables, in Markdown."""
    lines = [
        "| tokens | `align_edits`, ms | `align_tokenized`, ms | rapidfuzz on words alone, ms | difflib on words alone, "
        "ms | difflib ÷ `align_tokenized` |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for length, times in results.items():
        ratio = median(times["difflib"]) / median(times["align_tokenized"])
        lines.append(f"| {length:,} | {' | '.join(spread(values) for values in times.values())} | {ratio:.1f} |")
    for shorter, longer in ((length, 8 * length) for length in results):
        if longer in results:
            growth = [median(results[longer][name]) / median(results[shorter][name]) for name in results[shorter]]
            lines.append(
                f"| {longer:,} ÷ {shorter:,} (8 × the length) | {' | '.join(f'{g:.1f} ×' for g in growth)} | |"
            )
    scale = HH_RLHF_PAIRS / pairs
    wall, processor = preparation["wall"], preparation["processor"]
    lines += [
        "",
        f"| preparation, {pairs:,} pairs, {workers} workers | |",
        "| --- | --- |",
        f"| wall clock | {wall:.1f} s, {pairs / wall:.0f} pairs a second |",
        f"| processor time, all processes | {processor:.1f} s, {1000 * processor / pairs:.2f} ms a pair |",
        f"| of these, the tokenizer alone | {preparation['tokenizer']:.1f} s |",
        f"| wall clock for {HH_RLHF_PAIRS:,} pairs (aim: {SECONDS_AIMED_AT} s) | {wall * scale:.0f} s"
        f"{'' if wall * scale <= SECONDS_AIMED_AT else f' (**> {SECONDS_AIMED_AT} s**)'} |",
        f"| the same if {workers} cores had nothing else to do | {processor * scale / workers:.0f} s |",
        f"| rows | {preparation['kept']} |",
        "",
    ]
    return "\n".join(lines)


def about(options: argparse.Namespace, arguments: list[str], tokens: float) -> str:
    folders = {str(options.data): "<folder>", str(options.output): "<file>"}
    given = [folders.get(argument, argument) for argument in arguments]
    versions = ", ".join(f"{name} {version(name)}" for name in ("rapidfuzz", "tokenizers", "transformers", "datasets"))
    return (
        f"`{' '.join(['python benchmarks/alignment.py', *given])}`, {date.today()}, seed {options.seed}. "
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end; Python "
        f"{platform.python_version()}, {versions}. Processor time of {options.repeats} pairs of texts, the best of "
        "three runs each: median (least–greatest). One word in ten is edited. `align_edits` tokenizes, "
        "`align_tokenized` does not; rapidfuzz and difflib (without its junk heuristic) are given the words and make "
        f"no masks. The tokenizer is byte-level BPE with {options.vocab_size} tokens, trained on the data; a pair of "
        f"HH-RLHF has {tokens:.0f} tokens."
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder with the file.")
    parser.add_argument("--pairs", type=int, default=HH_RLHF_PAIRS, help="Rows of the preparation.")
    parser.add_argument("--workers", type=int, default=2, help="Processes of the preparation.")
    parser.add_argument("--max-length", type=int, default=1024, help="Tokens of a side, above which a row is dropped.")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="Tokens of the texts.")
    parser.add_argument("--repeats", type=int, default=7, help="Pairs of texts of each length.")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "alignment.md")
    options = parser.parse_args(arguments)
    console = Console()
    with gzip.open(options.data / FILE, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts = [row["chosen"] for row in rows]
    tokenizer = train_tokenizer(texts, options.vocab_size)
    few = rows[:1000]
    tokens = sum(len(tokenizer(row[side])["input_ids"]) for row in few for side in ("chosen", "rejected")) / len(few)

    # Workers that inherit a large heap are slow, so they run first.
    preparation = measure_preparation(rows, options.pairs, options.workers, options.max_length, tokenizer)
    console.print(f"{options.pairs} pairs prepared in {preparation['wall']:.1f} s.")
    results = measure_lengths(texts, options.lengths, options.repeats, options.seed, tokenizer, console)
    text = report(results, preparation, options.pairs, options.workers)
    console.print(Markdown(text))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(
        f"# Alignment\n\n{about(options, sys.argv[1:] if arguments is None else arguments, tokens)}\n\n{text}",
        encoding="utf-8",
    )
    console.print(f"Written to {options.output}.")


if __name__ == "__main__":
    main()
