"""Faults injected on purpose into a sweep: run with `pytest -m faults`."""
