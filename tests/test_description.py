"""Descriptions are values: equal, hashed, copied and pickled as such; a class with state elsewhere is refused."""

import copy
import dataclasses
import pickle
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import pytest

import stackjax as sj
from tests.cases import KINDS, POSITIONS, RECIPES


def models():
    for name, rule in RECIPES.items():
        yield name, KINDS["decoder"](rule, sj.position.Rotary(), 2)
    for name, where in POSITIONS.items():
        yield name, KINDS["decoder"](sj.recipe.PreNorm(), where, 2)
    for name, make in KINDS.items():
        made = make(sj.recipe.PreNorm(), sj.position.Rotary(), 2)
        yield name, getattr(made, "model", made)


@pytest.mark.parametrize(("name", "model"), [pytest.param(*pair, id=pair[0]) for pair in models()])
def test_copied_and_pickled_by_value(name, model):
    hash(model), model.checked(jax.eval_shape(model.init, jax.random.key(0)))
    for again in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again == model and hash(again) == hash(model) and repr(again) == repr(model)


ACTIVATIONS = (
    *(sj.feed_forward.gelu, sj.feed_forward.gelu_tanh, sj.feed_forward.silu, sj.feed_forward.relu),
    *(jax.nn.gelu, jax.nn.relu, jax.nn.silu, jnp.tanh, jnp.square, sj.feed_forward.ClampedSwish(limit=2.0)),
)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=range(len(ACTIVATIONS)))
def test_activations_of_every_kind(activation):
    forward = sj.FeedForward(activation=activation)
    for again in (copy.deepcopy(forward), pickle.loads(pickle.dumps(forward))):
        assert again == forward and hash(again) == hash(forward)


THERE = """
import pickle, sys
import jax, stackjax as sj
model = sj.decoder(d_model=16, depth=2, n_heads=2, feed_forward=sj.FeedForward(activation=jax.nn.silu))
read = pickle.load(sys.stdin.buffer)
assert read == model and hash(read) == hash(model), read
sys.stdout.buffer.write(pickle.dumps(read))
"""


def test_in_another_process():
    model = sj.decoder(d_model=16, depth=2, n_heads=2, feed_forward=sj.FeedForward(activation=jax.nn.silu))
    run = subprocess.run([sys.executable, "-c", THERE], input=pickle.dumps(model), capture_output=True, timeout=300)
    assert not run.returncode, run.stderr.decode()
    back = pickle.loads(run.stdout)
    assert back == model and hash(back) == hash(model)


def test_what_differs_is_not_equal():
    assert sj.FeedForward(d_hidden=3) != sj.FeedForward(d_hidden=4)
    assert sj.position.Rotary(scaling=sj.position.rotary_scaling.Linear(factor=2.0)) != sj.position.Rotary()


class Assigned(sj.FeedForward):
    def __init__(self, k):
        super().__init__()
        self.k = k


class Annotated(sj.recipe.PreNorm):
    k: float = 2.0


class Later(sj.position.Rotary):
    def prepare(self, shared, **positions):
        self.k = 3
        return super().prepare(shared, **positions)


class Silent(sj.residual.Pre):
    final = False


@dataclass(frozen=True, kw_only=True)
class SilentToo(sj.LayerNorm):
    eps = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Identity(sj.RMSNorm):
    k: float = 2.0


class Below(Annotated):
    pass


WRONG = {
    "assigned": (
        lambda: Assigned(2.0),
        "Assigned adds __init__, but is not a dataclass itself; decorate it with @data",
    ),
    "annotated": (lambda: Annotated(), "Annotated adds k, but is not a dataclass itself; decorate it with @dataclass"),
    "inherited": (lambda: Below(), "Annotated adds k, but is not a dataclass itself"),
    "set later": (
        lambda: sj.decoder(d_model=8, depth=1, n_heads=2, position=Later()).apply(
            sj.decoder(d_model=8, depth=1, n_heads=2).init(jax.random.key(0)), jnp.zeros((1, 2), int)
        ),
        "Later sets 'k', which is not one of its fields; declare `k: ...` and decorate it",
    ),
    "a default without a type": (
        lambda: Silent(),
        "Silent assigns final without a type, .* write `final: <type> = ...",
    ),
    "the same, decorated": (lambda: SilentToo(), "SilentToo assigns eps without a type"),
    "compared by identity": (lambda: Identity(), "Identity must compare by value"),
}


@pytest.mark.parametrize("name", WRONG)
def test_state_that_is_not_in_fields(name):
    make, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_classes_without_state_need_no_decorator():
    class Doubled(sj.FeedForward):
        note: ClassVar[str] = "twice"

        def apply(self, params, x, side_inputs):
            y, aux = super().apply(params, x, side_inputs)
            return 2 * y, aux

    assert Doubled(d_hidden=4) == Doubled(d_hidden=4) != sj.FeedForward(d_hidden=4)
    stack = sj.Stack.of(
        *(sj.Layer(sublayers=(one,)) for one in (Doubled(d_hidden=4), sj.FeedForward(d_hidden=4))),
        depth=2,
        d_model=8,
        recipe=sj.recipe.PreNorm(),
    )
    assert len(stack.segments) == 2


def test_fields_of_your_own_tell_siblings_apart():
    @dataclass(frozen=True, kw_only=True)
    class Scaled(sj.FeedForward):
        k: float = 1.0

        def apply(self, params, x, side_inputs):
            y, aux = super().apply(params, x, side_inputs)
            return self.k * y, aux

    one, two = (sj.decoder(d_model=8, depth=1, n_heads=2, feed_forward=Scaled(k=k)) for k in (0.0, 100.0))
    params, tokens = one.init(jax.random.key(0)), jnp.zeros((1, 2), int)
    run = jax.jit(lambda model, params: model.apply(params, tokens)[0], static_argnums=0)
    assert one != two and not jnp.allclose(run(one, params), run(two, params))
    assert dataclasses.replace(one.stack.segments[0].layers[0].sublayers[1], k=100.0) == Scaled(k=100.0)
