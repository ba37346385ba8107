"""Parts of models that know nothing of rewards."""
