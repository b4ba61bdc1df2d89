"""Experiments on depth: each is a command, one file or one folder, run as `python -m experiments.<name>`.

`lab` is no experiment but what two or more of them import, `own_recipe` an example of a recipe from outside the
library; `notebooks` and `results` hold no code of theirs.
"""
