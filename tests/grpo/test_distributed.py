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
    for run in set(grpo_runs.RUNS) - {"two_steps"}:
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
    # Which completions share an optimizer step depends on the number of processes, so this one's parameters do too.
    alone = grpo_runs.make("two_steps", tmp_path / "alone")
    alone.train()
    parts = [torch.load(tmp_path / f"two_steps-advantages-{rank}.pt") for rank in range(processes)]
    places = sum(len(part) for part in parts)
    assert places == len(alone.first_advantages) == 2 * grpo_runs.BATCH_SIZE
    together = torch.cat([torch.nn.functional.pad(part, (0, 8 - part.shape[1])) for part in parts])
    expected = torch.nn.functional.pad(alone.first_advantages, (0, 8 - alone.first_advantages.shape[1]))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)
