"""Layers left out of trained models, one by one and together; see `python -m experiments.layer_drop --help`."""
