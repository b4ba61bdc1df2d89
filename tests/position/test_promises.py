"""What every encoding that acts inside attention promises: caches, padding, packing and shifts change nothing.

`tests/test_conformance.py` checks the encodings of `cases`; here are variants of them.
"""

import jax
import pytest

import stackjax as sj
from stackjax import position, testing
from stackjax.testing import normal
from tests.cases import POSITIONS

SCALING = position.rotary_scaling
VARIANTS = {
    "rotary_partial": position.Rotary(d_rotary=4, interleaved=True, scaling=SCALING.Llama3()),
    "rotary_yarn": position.Rotary(scaling=SCALING.YaRN(factor=4.0, original_length=64)),
    "rotary_dynamic_within": position.Rotary(scaling=SCALING.DynamicNTK(original_length=100)),
    "tree_bias_per_layer": position.TreeBias(max_steps=2, per_layer=True),
}
RELATIVE = ["rotary", "rotary_partial", "rotary_yarn", "shaw", "transformer_xl", "t5", "t5_per_layer", "alibi"]


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_decoding_and_padding_change_nothing(name):
    testing.check_cached_attention(VARIANTS[name])


@pytest.mark.parametrize("name", VARIANTS)
def test_packed_documents_do_not_see_each_other(name):
    testing.check_packing(VARIANTS[name])


@pytest.mark.parametrize("name", RELATIVE)
def test_only_differences_of_index_matter(name):
    testing.check_shift({**POSITIONS, **VARIANTS}[name])


@pytest.mark.parametrize("name", ["tree_rotary", "tree_bias", "tree_bias_per_layer"])
def test_a_missing_path_is_named(name):
    model = sj.decoder(vocab=7, d_model=16, depth=1, n_heads=2, position={**POSITIONS, **VARIANTS}[name])
    params = model.stack.init(jax.random.key(0))
    with pytest.raises(ValueError, match="position\\['path'\\]"):
        model.stack.apply(params, normal(1, 5, 16))
