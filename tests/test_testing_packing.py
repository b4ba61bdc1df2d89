"""The checks of padding and packing: a sublayer that reads other documents, or counts padding, is named."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import pytest

import stackjax as sj
from stackjax import testing
from stackjax.testing import suite


def without(positions):
    return positions and {name: x for name, x in positions.items() if name != "segment"}


@dataclass(frozen=True, kw_only=True)
class Unsegmented(sj.Attention):
    """Does not look where documents begin, in its tokens or in the memory."""

    def prepare(self, shared, side_inputs, *arguments):
        whole = replace(
            side_inputs,
            position=without(side_inputs.position),
            memory_position=without(side_inputs.memory_position),
        )
        return super().prepare(shared, whole, *arguments)


@dataclass(frozen=True, kw_only=True)
class Penalised(sj.FeedForward):
    """Adds the mean square of its output as a loss, over all tokens or those that count."""

    counts_padding: bool = True

    def apply(self, params, x, side_inputs):
        y, aux = super().apply(params, x, side_inputs)
        counts = jnp.ones(x.shape[:-1])
        if side_inputs.position is not None and not self.counts_padding:
            counts = side_inputs.position["index"] >= 0
        return y, replace(aux, loss={"size": jnp.sum(counts[..., None] * y**2) / jnp.sum(counts)})


@pytest.mark.parametrize("options", [{"causal": False}, {"cross": True}], ids=["self", "cross"])
def test_documents_that_meet_are_named(options):
    with pytest.raises(AssertionError, match="packed documents do not see each other: the output differs by"):
        testing.check_documents(suite.model_around(Unsegmented(n_heads=2, **options)))


DELTA = sj.GatedDeltaNet(n_heads=2, d_head=4, kernel=3)
LATENT = sj.LatentAttention(n_heads=2, d_head=4, d_rotary=4, d_latent=4)
ATTEND = {
    "causal": sj.Attention(n_heads=2),
    "both ways": sj.Attention(n_heads=2, causal=False),
    "cross": sj.Attention(n_heads=2, cross=True),
    "delta rule": DELTA,
    "latent": LATENT,
    "parallel": sj.Parallel(sublayers=(sj.Attention(n_heads=2), sj.FeedForward(d_hidden=8))),
}


@pytest.mark.parametrize("name", ATTEND)
def test_documents_stay_apart_in_sublayers_of_the_library(name):
    testing.check_documents(suite.model_around(ATTEND[name]))


def test_a_loss_that_counts_padding_is_named():
    with pytest.raises(AssertionError, match="padding does not count in losses: size differs by"):
        testing.check_losses(suite.model_around(Penalised(d_hidden=8)))
    testing.check_losses(suite.model_around(Penalised(d_hidden=8, counts_padding=False)))


@pytest.mark.parametrize("options", [{"balance_loss": 0.1}, {"z_loss": 0.1}], ids=str)
def test_losses_of_the_library_do_not_count_padding(options):
    experts = sj.MixtureOfExperts(n_experts=4, d_hidden=8, **options)
    testing.check_losses(suite.model_around(experts))
