"""What the tests of reward_model share: reward trainer cases."""

WORDS = ["terrific", "lousy", "good", "lazy", "quick", "standard", "brown"]


ROWS = [
    {"prompt": "Human: how was it?", "chosen": f" This movie was {one}.", "rejected": f" This movie was {other}."}
    for i, one in enumerate(WORDS)
    for other in WORDS[:i]
]  # 21 pairs

# Edits of 1 to 17 tokens in answers of different lengths, one of them without an edited token on a side.
UNEVEN = [
    {"prompt": "a", "chosen": " This movie was good.", "rejected": " This movie was bad."},
    {"prompt": "b c", "chosen": " the quick brown fox jumps over the lazy dog", "rejected": " no"},
    {
        "prompt": "d",
        "chosen": " mix the flour and wait",
        "rejected": " mix the flour, the water and the salt, and wait",
    },
    {"prompt": "e", "chosen": " 1 2 3 4 5 6", "rejected": " 1 2 3 5 5 6"},
    {"prompt": "f", "chosen": " No thanks.", "rejected": " No-thanks."},
    {"prompt": "g", "chosen": " actors", "rejected": " the actors would keep my eyes open again"},
]


def training_logs(trainer):
    return [log for log in trainer.state.log_history if "loss" in log]
