"""Members of a group on different processes: any number of them train as one does."""

import pytest
import torch

import grpo_runs
from processes import launch


pytestmark = pytest.mark.slow


# By hand, DDP on four processes and FSDP2 on two passed as well; a launch takes half a minute.
@pytest.mark.parametrize(("engine", "processes"), [("ddp", 2), pytest.param("fsdp2", 4, marks=pytest.mark.any_trl)])
def test_as_one_process(engine, processes, tmp_path):
    launch(grpo_runs.__file__, tmp_path, *grpo_runs.RUNS, engine=engine, processes=processes)
    for run in grpo_runs.RUNS:
        trainer = grpo_runs.make(run, tmp_path / "alone")
        start = grpo_runs.parameters(trainer)
        trainer.train()
        expected = grpo_runs.parameters(trainer)
        assert max((expected[name] - start[name]).abs().max() for name in start) > 1e-3
        for rank in range(processes):
            actual = torch.load(tmp_path / f"{run}-{rank}.pt")
            for name, tensor in expected.items():
                torch.testing.assert_close(
                    actual[name], tensor, rtol=1e-5, atol=2e-5, msg=lambda m, name=name, run=run: f"{run}, {name}: {m}"
                )
