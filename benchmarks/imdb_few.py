"""What dense rewards buy on a real model where updates have few answers: `imdb.py` with 16 of them instead of 64.

    python benchmarks/imdb_few.py prepare --data <folder> --model models/SmolLM2-135M-Instruct
    python benchmarks/imdb_few.py all --data <folder> --arms "PPO, terminal" "PPO, token, lambda .7"
    python benchmarks/imdb_few.py report

On ParaDetox token scores gain there and not with 64 (`detox_few.py`). The models are those of `imdb.py`: a copy of its
folder without the results saves `prepare`.
"""

from imdb import FEW_REVIEWS
from real_density import main


if __name__ == "__main__":
    main(FEW_REVIEWS, __doc__)
