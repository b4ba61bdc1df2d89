"""Experiments on depth: each is a command, one file or one folder, run as `python -m experiments.<name>`.

`lab` is no experiment but what two or more of them import, `own_recipe` an example of a recipe from outside the
library; `results` holds what was run and committed, `pages` writes a page on each recipe and position from it, and
`python -m experiments.notebooks` executes the notebooks in place.
"""
