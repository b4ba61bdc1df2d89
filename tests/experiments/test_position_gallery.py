"""The gallery: every encoding is there, with its equation and source."""

import jax
import numpy as np
import pytest

from experiments.lab import position_matrix
from stackjax import position
from stackjax.position import alibi
from tests.position.helpers import index

SHOWN = position_matrix.encodings(8)
ABSTRACT = {position.Position, position.LearnedBias, position.Both}


def test_every_encoding_is_shown_and_in_the_table():
    exported = {getattr(position, name) for name in position.__all__}
    kinds = {kind for kind in exported if isinstance(kind, type) and issubclass(kind, position.Position)} - ABSTRACT
    assert {type(encoding) for encoding in SHOWN.values()} - ABSTRACT == kinds
    table = position.__doc__ or ""
    assert all(f"    {kind.__name__} " in table for kind in kinds)


@pytest.mark.parametrize("name", [name for name in SHOWN if not name.startswith("Both")])
def test_every_encoding_has_an_equation_and_a_source(name):
    equation, source = position_matrix.equation_and_source(SHOWN[name])
    assert len(equation) > 20 and len(source) > 20, (equation, source)


def test_alibi_is_its_picture():
    matrix = position_matrix.induced(SHOWN["ALiBi"], index(*range(8)), jax.random.key(0))
    far = np.abs(np.arange(8)[:, None] - np.arange(8))
    np.testing.assert_allclose(matrix, 4 - alibi.slopes(4)[0] * far, rtol=1e-6)
