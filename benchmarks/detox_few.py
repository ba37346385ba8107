"""What dense rewards buy on a real model where updates have few answers: `detox.py` with 16 of them instead of 64.

    python benchmarks/detox_few.py prepare --data <folder> --model models/SmolLM2-135M-Instruct
    python benchmarks/detox_few.py all --data <folder> --arms "PPO, terminal" "PPO, token" "PPO, token, lambda .7"
    python benchmarks/detox_few.py report

By `gradients.py`, the gradient by token scores is less noisy than that by one score an answer. That should count most
where an update has few answers to average over.
"""

from detox import FEW_ANSWERS
from real_density import main


if __name__ == "__main__":
    main(FEW_ANSWERS, __doc__)
