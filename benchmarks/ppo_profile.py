"""Where the time of our PPO update goes: PyTorch's operators by kind, in the settings of `ppo_step.py`.

    python benchmarks/ppo_profile.py --settings 1k-full 50k-padded smollm2

The profiler counts two updates, the first of which `ppo_step.py` does not measure. What no operator accounts for is
Python, the profiler's own part among it. Each setting is a process of one thread.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from datetime import date
from pathlib import Path

import ppo_step

from provenance import commit


RESULTS = Path(__file__).resolve().parent / "results" / "ppo_profile.md"
# Kinds by what an operator's name has in it; the first that fits.
KINDS = {
    "attention": ("scaled_dot_product", "flash_attention"),
    "matrix products": ("::mm", "::addmm", "::bmm", "::baddbmm", "::linear", "mkldnn"),
    "optimizer, clipping": ("_foreach", "_fused_adam", "Optimizer", "vector_norm", "clip_grad"),
    "softmax over the vocabulary": ("::exp", "::log", "::amax", "::_softmax", "::sub_", "_HeadLoss"),
    "sampling": ("cumsum", "searchsorted", "sort", "multinomial", "topk"),
    "copies, layout": ("::copy_", "::cat", "::clone", "::_to_copy", "::index", "::gather", "::fill_", "::zero_"),
    "elementwise, norms": (
        "::mul",
        "::add",
        "::silu",
        "::pow",
        "::mean",
        "::rsqrt",
        "::neg",
        "::div",
        "::sum",
        "Backward",
        "::sub",
        "::sigmoid",
    ),
}
OTHERS, PYTHON, SECONDS = "other operators", "Python, profiler", "seconds"


def kind_of(name: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), OTHERS)


def profile(setting: ppo_step.Setting) -> dict[str, float]:
    """Shares of the time by kind."""
    import torch
    from torch.profiler import ProfilerActivity

    job = {"setting": asdict(setting), "arm": "ours", "family": "llama", "updates": 1, "seed": 0, "bf16": False}
    job |= {"gradient_checkpointing": False, "threads": 1, "clock": "cpu"}
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
        begin = time.perf_counter()
        ppo_step.run_worker(job)
        total = time.perf_counter() - begin
    seconds = Counter()
    for event in profiler.key_averages():
        seconds[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    seconds[PYTHON] = total - sum(seconds.values())
    return {SECONDS: total, **{kind: value / total for kind, value in seconds.items()}}


def main() -> None:
    names = [setting.name for setting in ppo_step.SETTINGS]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--settings", nargs="+", choices=names, default=["1k-full", "50k-padded"])
    parser.add_argument("--worker", choices=names, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    of_name = {setting.name: setting for setting in ppo_step.SETTINGS}
    if arguments.worker:
        print("\n" + json.dumps(profile(of_name[arguments.worker])))
        return
    shares = {}
    for name in arguments.settings:
        command = [sys.executable, __file__, "--worker", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        shares[name] = json.loads(done.stdout.splitlines()[-1])
    kinds = [*KINDS, OTHERS, PYTHON]
    lines = [
        "# Where the time of a PPO update goes",
        "",
        f"`python benchmarks/ppo_profile.py --settings {' '.join(arguments.settings)}`, {date.today()}, commit "
        f"{commit()}, one thread. Shares of the time of two updates and of what comes before them, by kind "
        "of operator; settings as in [the benchmark of a step](ppo_step.md).",
        "",
        f"| | {' | '.join(shares)} |",
        f"| --- |{' ---: |' * len(shares)}",
        *(f"| {kind} | {' | '.join(f'{part.get(kind, 0):.0%}' for part in shares.values())} |" for kind in kinds),
        f"| seconds | {' | '.join(f'{part[SECONDS]:.0f}' for part in shares.values())} |",
    ]
    text = "\n".join(lines) + "\n"
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
