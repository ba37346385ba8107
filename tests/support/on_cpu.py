"""Run a script under FSDP or DeepSpeed on CPUs: `accelerate launch ... on_cpu.py SCRIPT ARGUMENT...`.

accelerate has both on GPUs alone: without one it falls back to DDP, or to a single process. Here it is told that there
are GPUs, and that their device is the CPU and their backend gloo. All else is its own.
"""

import os
import runpy
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import training_args


def main() -> None:
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    os.environ.pop("ACCELERATE_USE_CPU", None)
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    training_args.is_torch_bf16_gpu_available = lambda: True
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
