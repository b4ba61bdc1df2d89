"""Work of each of eight devices in a step of training; see `python -m experiments.scale --help`."""
