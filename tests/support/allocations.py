"""What PyTorch allocates on the CPU."""

import numpy as np
from torch.profiler import ProfilerActivity, profile


def allocations(run):
    """The sizes in bytes of all that is allocated on the CPU while `run()` runs, inside operators too, and the peak of
    their sum."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = np.array([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return sizes[sizes > 0], sizes.cumsum().max()
