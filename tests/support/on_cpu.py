"""Run a script on one of several processes of a CPU: `accelerate launch ... on_cpu.py SCRIPT ARGUMENT...`.

accelerate has FSDP and DeepSpeed on GPUs alone: without one it falls back to DDP, or to a single process. Unless
`ACCELERATE_USE_CPU` asks for DDP, it is told here that there are GPUs, and that their device is the CPU and their backend
gloo. All else is its own.

The process group is closed before Python ends. A thread of gloo may still free a tensor of the last collective, for which
it needs Python's lock; a Python that has begun to end stops the thread instead, and the process aborts ("terminate called
without an active exception").
"""

import os
import runpy
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import training_args


def pretend_there_are_gpus() -> None:
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    training_args.is_torch_bf16_gpu_available = lambda: True


def main() -> None:
    if "ACCELERATE_USE_CPU" not in os.environ:
        pretend_there_are_gpus()
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
