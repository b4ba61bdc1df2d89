"""Experiments: one question, one command each."""
