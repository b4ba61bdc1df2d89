"""Training that starts shallow and grows, for the same FLOPs; see `python -m experiments.growth --help`."""
