"""The worth of knowing where in the tree a token stands; see `python -m experiments.tree_positions --help`."""
