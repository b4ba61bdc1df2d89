"""Experiments on depth: the main job (`depth_sweep`), and one question to a file."""
