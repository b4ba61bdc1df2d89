"""A look into every layer of any recipe and depth; see `python -m experiments.depth_probe --help`."""
