"""The token reward model: its architecture, training, evaluation and scores."""
