"""What is kept of a cell is read back as it was, or refused."""

import jax
import numpy as np
import pytest

import stackjax as sj
from experiments.lab import store


def test_kept_parameters_of_a_model_with_more_of_them_are_another_models(tmp_path):
    untied, tied = (sj.decoder(vocab=9, d_model=8, depth=1, n_heads=2, tied=tied) for tied in (False, True))
    leaves = jax.tree_util.tree_leaves_with_path(untied.init(jax.random.key(0)))
    np.savez(tmp_path / "params.npz", **{sj.parameter.path_name(path): leaf for path, leaf in leaves})
    assert store.load_params(tmp_path / "params.npz", untied)
    with pytest.raises(ValueError, match=r"is another model's: it has .* besides"):
        store.load_params(tmp_path / "params.npz", tied)
