"""What the tests of reward_model share: reward trainer cases."""

WORDS = ["terrific", "lousy", "good", "lazy", "quick", "standard", "brown"]


ROWS = [
    {"prompt": "Human: how was it?", "chosen": f" This movie was {one}.", "rejected": f" This movie was {other}."}
    for i, one in enumerate(WORDS)
    for other in WORDS[:i]
]  # 21 pairs


def training_logs(trainer):
    return [log for log in trainer.state.log_history if "loss" in log]
