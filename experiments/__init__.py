"""Experiments with stackjax: one question, one file, and what they share."""
