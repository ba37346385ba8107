"""bf16 or float32 on a CPU? Each phase of training with a pretrained model, both ways, with both kinds of attention.

    python benchmarks/cpu_precision.py --model models/SmolLM2-135M-Instruct

The phases are those of the trainers: forward and backward pass of a batch, a forward pass without gradients, and
decoding with a cache. The ways take turns, so that other load meets them alike. Processors with AMX multiply large bf16
matrices several times faster than float32 ones.
"""

import argparse
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from provenance import commit


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cpu_precision.md"
ROWS, LENGTH, DECODED = 16, 96, 8
WAYS = [(attention, bf16) for attention in ("sdpa", "eager") for bf16 in (False, True)]


def phases(model: Any, ids: torch.Tensor, bf16: bool) -> dict[str, Callable[[], None]]:
    """The phases by name, as functions to time."""

    def precision() -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=bf16)

    def train() -> None:
        with precision():
            model.model(input_ids=ids).last_hidden_state.float().square().mean().backward()
        model.zero_grad()

    @torch.no_grad()
    def read() -> None:
        with precision():
            model.model(input_ids=ids)

    @torch.no_grad()
    def decode() -> None:
        with precision():
            out = model(input_ids=ids[:, :32], use_cache=True, logits_to_keep=1)
            for _ in range(DECODED):
                cache = {"past_key_values": out.past_key_values, "use_cache": True}
                out = model(input_ids=out.logits.argmax(-1), logits_to_keep=1, **cache)

    return {"training step": train, "pass without gradients": read, f"decoding {DECODED} tokens": decode}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="Path or Hub name.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models = {
        attention: AutoModelForCausalLM.from_pretrained(
            arguments.model, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
        )
        for attention in ("sdpa", "eager")
    }
    vocabulary = models["sdpa"].config.vocab_size
    ids = torch.randint(vocabulary, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    seconds = defaultdict(list)
    for repeat in range(arguments.repeats + 1):
        for attention, bf16 in WAYS:
            for name, phase in phases(models[attention], ids, bf16).items():
                begin = time.process_time()
                phase()
                if repeat > 0:  # the first warms up
                    seconds[name, attention, bf16].append(time.process_time() - begin)
    columns = [f"{attention}, {'bf16' if bf16 else 'float32'}" for attention, bf16 in WAYS]
    lines = [f"| phase | {' | '.join(columns)} |", f"|{' --- |' * (1 + len(columns))}"]
    for name in dict.fromkeys(key[0] for key in seconds):
        cells = []
        for way in WAYS:
            times = seconds[(name, *way)]
            cells.append(f"{statistics.median(times):.2f} ({min(times):.2f}–{max(times):.2f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = "\n".join(
        [
            "# bf16 and float32 on a CPU",
            "",
            f"`python benchmarks/cpu_precision.py --model {arguments.model} --repeats {arguments.repeats} --threads "
            f"{arguments.threads}`, {date.today()}, commit {commit()}, torch {torch.__version__}, "
            f"{platform.machine()}{' with AMX' if torch.cpu._is_amx_tile_supported() else ''}.",
            "",
            f"Processor seconds, median (least–greatest) of {arguments.repeats}; {ROWS} rows of {LENGTH} tokens.",
            "",
            *lines,
            "",
        ]
    )
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
