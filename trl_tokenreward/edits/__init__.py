"""Which tokens an edit changed."""
