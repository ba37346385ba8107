"""Scripts on several processes of this machine's CPU."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import on_cpu
import ppo_runs


CONFIGS = Path(__file__).parents[2] / "examples" / "accelerate_configs"


def launch(script, *arguments, engine="ddp", processes=2, timeout=400):
    """Run a script on some processes of this machine's CPU, under one of the example configurations of accelerate."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{engine}.yaml")]
    command += ["--num_processes", str(processes), "--mixed_precision", "no", "--main_process_port", str(port)]
    command += [on_cpu.__file__, str(script), *map(str, arguments)]
    environment = {**os.environ, **ppo_runs.ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    environment.pop("ACCELERATE_USE_CPU", None)
    if engine == "ddp":  # which has the CPU and gloo by `use_cpu` in the training arguments
        environment["ACCELERATE_USE_CPU"] = "true"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-10000:]


def load(directory, rank):
    return json.loads((directory / f"outcome-{rank}.json").read_text())
