"""Trainings that are killed, or find the disk full, at random moments, and resumed, come to the bits of those that
nobody disturbs.

Not a part of the suite, since it takes a quarter of an hour: `python -m pytest tests/torture/test_training.py -s`. The
random moments follow from the seeds alone where they are counted in checkpoints and bytes; a kill after so many seconds
hits another moment each time. `TORTURE_SEEDS` sets how many seeds are tried.
"""

import json
import os
import subprocess
import sys

import pytest

import ppo_runs
import torture_training


pytestmark = [pytest.mark.slow, pytest.mark.any_trl]

SEEDS = int(os.environ.get("TORTURE_SEEDS", "3"))
KILLED, FAILED = -9, 1


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("fault", torture_training.FAULTS)
@pytest.mark.parametrize("kind", torture_training.MAKE)
def test_a_disturbed_run_equals_an_undisturbed_one(kind, fault, seed, tmp_path):
    if fault == "full disk" and os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    environment = {**os.environ, **ppo_runs.ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, torture_training.__file__, str(tmp_path), kind, fault, str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    report = json.loads((tmp_path / "report.json").read_text())
    *disturbed, last = report["statuses"]
    assert last == 0 and set(disturbed) <= {KILLED if "kill" in fault else FAILED}, report
    # Nothing but the fault itself ends a process: no checkpoint that was cut short does.
    causes = ("No space left", "File too large", "I/O error", "iostream error", "inline_container")
    assert all(any(cause in ending for cause in causes) for ending in report["endings"]), report["endings"]
    assert report["same_names"] and report["different"] == [] and report["same_logs"]
    resumed = sum("the last whole checkpoint" in warning for warning in report["warnings"])
    anew = len(report["warnings"]) - resumed
    print(f"\n{kind}, {fault}: {len(disturbed)} disturbed, cut short: {resumed} passed over, {anew} no other to resume")
