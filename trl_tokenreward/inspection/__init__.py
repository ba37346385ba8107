"""Reports on the edits of a data set."""
