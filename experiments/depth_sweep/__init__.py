"""The main job: every recipe at every depth and learning rate; see `python -m experiments.depth_sweep --help`."""
