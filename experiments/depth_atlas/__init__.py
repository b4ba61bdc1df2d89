"""The atlas of all recipes from 0 to 1,024 layers; see `python -m experiments.depth_atlas --help`."""
