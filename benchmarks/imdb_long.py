"""What dense rewards buy on a real model where answers are twice as long: `imdb.py` with completions of 96 tokens.

    python benchmarks/imdb_long.py prepare --data <folder> --model models/SmolLM2-135M-Instruct
    python benchmarks/imdb_long.py all --data <folder> --arms "PPO, terminal" "PPO, token"
    python benchmarks/imdb_long.py report

With one reward at the end, credit for a word is harder to assign the longer the answer is.
"""

from imdb import LONG_REVIEWS
from real_density import main


if __name__ == "__main__":
    main(LONG_REVIEWS, __doc__)
