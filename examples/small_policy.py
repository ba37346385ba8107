# /// script
# dependencies = ["trl-tokenreward[demo]"]
# ///
"""Trains a small policy to try things out: its tokenizer on a data set's texts, the model from
scratch on the answers as they were before the edit. A minute or two on two cores, without a network.

    python examples/demo_corpus.py --output pairs
    python examples/small_policy.py --dataset pairs --output small-policy

The output is a folder in the usual format. Name it wherever a command takes a model.
"""

import argparse
from pathlib import Path

from transformers import set_seed

from demo import Run, Sizes, train_policy, train_tokenizer
from trl_tokenreward.data.preprocessing import prepare_dataset
from trl_tokenreward.utils.loading import load_split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset", required=True, help="preference data: a file, a folder, or a name on the Hub")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model and its tokenizer")
    parser.add_argument("--epochs", type=float, default=Sizes().sft_epochs, help="passes over the data")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    set_seed(arguments.seed)
    sizes = Sizes(sft_epochs=arguments.epochs)
    rows = load_split(arguments.dataset, "train")
    tokenizer = train_tokenizer(rows, sizes.vocabulary)
    rows, dropped = prepare_dataset(rows, tokenizer, max_length=sizes.max_length, name="train")
    print(f"{dropped.describe()}.")
    run = Run(arguments.output.parent, arguments.seed, sizes)
    policy = train_policy(tokenizer, rows, run, arguments.output.name)
    print(f"A policy of {policy.num_parameters():,} parameters is in {arguments.output}.")


if __name__ == "__main__":
    main()
