"""The checks for schemes of one's own: a stranger's pass, and each kind of fault fails with a message that names it."""

import subprocess
import sys
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import testing
from stackjax.norm import Norm
from stackjax.position import Position
from stackjax.recipe import PreNorm, Recipe, sublayer_index, with_coefficients
from stackjax.recipe.form import Form, add
from stackjax.testing import suite


@dataclass(frozen=True, kw_only=True)
class Twice(Form):
    """norm_out(alpha x + beta norm_in(f(x)))"""

    norm: Norm = sj.RMSNorm()
    norms = ("norm_in", "norm_out")

    def update(self, x, f, c, norm_in, norm_out):
        return norm_out(add(c.alpha, x, c.beta, norm_in(f(x))))


@dataclass(frozen=True, kw_only=True)
class Strangers(Recipe):
    """Later branches count for less."""

    residual: Form = Twice()

    def coefficients(self, geometry):
        return with_coefficients(super().coefficients(geometry), beta=1 / sublayer_index(geometry))


@pytest.mark.thorough
@pytest.mark.parametrize("norm", [sj.RMSNorm(), sj.BatchNorm()], ids=lambda norm: type(norm).__name__)
def test_a_strangers_recipe_passes(norm):
    testing.check_recipe(Strangers(residual=Twice(norm=norm)), depth=2)


CALLS = []


@dataclass(frozen=True, kw_only=True)
class Counting(Form):
    """Remembers in Python how often it ran, which a scan does once and a loop in every layer."""

    def update(self, x, f, c):
        CALLS.append(0)
        return x + len(CALLS) * f(x)


@dataclass(frozen=True, kw_only=True)
class Branching(Form):
    """Asks a coefficient for a Python bool."""

    def update(self, x, f, c):
        return x + f(x) if c.alpha > 0.5 else f(x)


@dataclass(frozen=True, kw_only=True)
class Idle(Form):
    """Declares a gate and does without."""

    def spec(self, d_model, depth):
        return {"gate": sj.Spec(shape=(d_model,), role="residual", init=sj.parameter.zeros)}

    def update(self, x, f, c, gate):
        return add(1, x, 1, f(x))


@dataclass(frozen=True, kw_only=True)
class Rooted(Form):
    """Its gradient at the first token, which is 0 in the first layer, is not a number."""

    def update(self, x, f, c):
        return x + jnp.sqrt(jnp.abs(f(x - x[..., :1, :])))


@dataclass(frozen=True, kw_only=True)
class Promoting(Form):
    """A float32 coefficient times a bfloat16 stream."""

    def update(self, x, f, c):
        return c.alpha * x + f(x)


@dataclass(frozen=True, kw_only=True)
class Peeping(Form):
    """Adds the mean over all tokens, later ones among them."""

    def update(self, x, f, c):
        return add(1, x, 1, f(x) + jnp.mean(x, -2, keepdims=True))


@dataclass(frozen=True, kw_only=True)
class Mingling(Form):
    """Adds the mean over the examples."""

    def update(self, x, f, c):
        return add(1, x, 1, f(x) + jnp.mean(x, 0))


@dataclass(frozen=True, kw_only=True)
class Summing(Form):
    """Adds the mean of the tokens so far, which a cache does not hold."""

    def update(self, x, f, c):
        so_far = jnp.cumsum(x, -2) / jnp.arange(1, x.shape[-2] + 1)[:, None]
        return add(1, x, 1, f(x + so_far.astype(x.dtype)))


@dataclass(frozen=True, kw_only=True)
class Forgetful(Twice):
    """Overrides more than `update`, and forgets the statistics of its norms."""

    def apply(self, params, c, stream, branch, key=None):
        stream, aux = super().apply(params, c, stream, branch, key)
        return stream, replace(aux, state={k: v for k, v in aux.state.items() if k != "residual"})


@dataclass(frozen=True, kw_only=True)
class Calling(Form):
    """Leaves JAX for a number that a `vmap` makes many of."""

    def update(self, x, f, c):
        alpha = jax.pure_callback(np.float32, jax.ShapeDtypeStruct((), jnp.float32), c.alpha)
        return add(alpha, x, 1, f(x))


@dataclass(frozen=True, kw_only=True)
class Levelling(PreNorm):
    """Scales each parameter by the largest entry of all layers."""

    def project(self, params, declaration):
        return jax.tree.map(lambda x: x / (jnp.max(jnp.abs(x)) + 1e-6), params)


BROKEN = [
    (testing.check_scan, Counting(), "scan equals the loop: .* differs by"),
    (testing.check_scan, Branching(), "runs in a scan as it does in a loop: TracerBoolConversionError"),
    (testing.check_scan, Idle(), "every parameter has an effect: the gradient of .*attention/gate is zero"),
    (testing.check_scan, Rooted(), "values and gradients are finite: gradient/.* is not finite"),
    (testing.check_dtype, Promoting(), "output dtype = input dtype: .* is float32; .* bfloat16"),
    (testing.check_vmap, Calling(), "coefficients are data under vmap: "),
    (testing.check_statistics, Forgetful(norm=sj.BatchNorm()), "statistics are returned: .*norm_in/mean has no new"),
    (testing.check_causality, Mingling(), "causality: token 0 depends on another example, by"),
    (testing.check_causality, Peeping(), "causality: token 0 depends on token 1, which comes later, by"),
    (testing.check_decoding, Summing(), "decoding equals the full forward: the logits of .* differ by"),
]


@pytest.mark.parametrize(("check", "form", "message"), BROKEN, ids=lambda value: type(value).__name__)
def test_a_broken_form_is_named(check, form, message):
    with pytest.raises(AssertionError, match=f"{type(form).__name__}.*: {message}"):
        check(suite.small_decoder(recipe=Recipe(residual=form)))


def test_a_broken_recipe_is_named():
    with pytest.raises(
        AssertionError, match=r"Levelling.*: the first 1 of 2 layers begin as a stack of 1 does: .* differs"
    ):
        testing.check_prefix(Levelling(), depth=2)


@dataclass(frozen=True, kw_only=True)
class Slope(Position):
    """ALiBi with a learned slope, shared by all heads."""

    def spec(self, n_heads, d_head):
        return {"slope": sj.Spec(shape=(1,), role="relative", init=sj.parameter.ones)}

    def prepare(self, shared, *, query, key, **_):
        return sj.position.relation.distance(query, key)

    def bias(self, params, table):
        return -params["slope"] * jnp.abs(table)[..., None, :, :]


@dataclass(frozen=True, kw_only=True)
class ByEntry(Slope):
    """Counts entries of the cache instead of reading their index."""

    def prepare(self, shared, *, query, key, **_):
        n_queries, n_keys = query["index"].shape[-1], key["index"].shape[-1]
        return (jnp.arange(n_keys) - jnp.arange(n_queries)[:, None])[None]


@dataclass(frozen=True, kw_only=True)
class ByColumn(Slope):
    """Counts the columns of its input, padded ones among them."""

    def prepare(self, shared, *, query, key, **_):
        return jnp.broadcast_to(
            jnp.arange(key["index"].shape[-1]) ** 2, sj.position.relation.distance(query, key).shape
        )


@dataclass(frozen=True, kw_only=True)
class Blind(Slope):
    """Has a slope and adds nothing."""

    def bias(self, params, table):
        return 0 * params["slope"] * table[..., None, :, :]


@pytest.mark.thorough
def test_a_strangers_position_passes():
    testing.check_position(Slope())
    testing.check_shift(Slope())


@pytest.mark.thorough
def test_a_broken_position_is_named():
    with pytest.raises(AssertionError, match=r"Blind.*: every parameter has an effect: .*position/slope is zero"):
        testing.check_position(Blind())
    with pytest.raises(AssertionError, match=r"decoding equals the full forward: the logits of .* differ by"):
        testing.check_decoding(suite.small_decoder(position=ByEntry()))


def test_promises_inside_attention_can_be_broken():
    with pytest.raises(AssertionError, match="padding changes nothing"):
        testing.check_cached_attention(ByColumn())
    with pytest.raises(AssertionError, match="attention from a cache equals attention all at once"):
        testing.check_cached_attention(ByEntry())
    with pytest.raises(AssertionError, match="packed documents do not see each other"):
        testing.check_packing(ByColumn())
    with pytest.raises(AssertionError, match="only differences of index matter: twice the distance"):
        testing.check_shift(ByEntry())


@dataclass(frozen=True, kw_only=True)
class Squared(sj.Sublayer):
    """(x W)²"""

    name: str = "squared"
    mixes_tokens = False

    def spec(self, d_model):
        return sj.parameter.matrix(d_model, d_model, "up")

    def apply(self, params, x, side_inputs):
        return jnp.square(sj.parameter.linear(params, "up", x)), sj.Aux()


@dataclass(frozen=True, kw_only=True)
class Rising(Squared):
    """The same in float32."""

    def apply(self, params, x, side_inputs):
        return jnp.square(x @ params["up"]), sj.Aux()


@dataclass(frozen=True, kw_only=True)
class Neighbour(Squared):
    """Reads the token after."""

    def apply(self, params, x, side_inputs):
        return super().apply(params, jnp.roll(x, -1, -2), side_inputs)


@dataclass(frozen=True, kw_only=True)
class Counter(Squared):
    """Declares a statistic that nobody counts."""

    def spec(self, d_model):
        count = sj.Spec(shape=(), role="statistic", init=sj.parameter.zeros)
        return {**super().spec(d_model), "count": count}


@pytest.mark.thorough
def test_a_strangers_sublayer_passes():
    testing.check_sublayer(Squared())


@pytest.mark.thorough
@pytest.mark.parametrize(
    "sublayer",
    [
        sj.Attention(n_heads=2, cross=True),
        pytest.param(sj.MixtureOfExperts(n_experts=4, d_hidden=8, bias_rate=0.1), marks=pytest.mark.slow),
    ],
    ids=["cross-attention", "experts"],
)
def test_sublayers_of_the_library_pass(sublayer):
    testing.check_sublayer(sublayer)


@pytest.mark.parametrize(
    ("check", "sublayer", "message"),
    [
        (testing.check_dtype, Rising(), "output dtype = input dtype: the output of squared is float32"),
        (testing.check_causality, Neighbour(), "causality: token 0 depends on token 1, which comes later"),
        (testing.check_statistics, Counter(), r"statistics are returned: .*squared/count has no new value"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_broken_sublayer_is_named(check, sublayer, message):
    with pytest.raises(AssertionError, match=message):
        check(suite.model_around(sublayer))


def test_no_test_runner_is_needed():
    code = "import sys; sys.modules['pytest'] = None; import stackjax.testing; stackjax.testing.check_prefix"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


EVERYWHERE = {"check_scan", "check_dtype", "check_causality", "check_decoding"}
INSIDE = {"check_cached_attention", "check_packing"}
OF_RECIPES = {"check_vmap", "check_prefix", "check_statistics", "check_factors", "check_project"}
OF_SUBLAYERS = {"check_statistics", "check_losses"}


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda: testing.check_recipe(PreNorm()), EVERYWHERE | OF_RECIPES),
        (lambda: testing.check_position(Slope()), EVERYWHERE | INSIDE),
        (lambda: testing.check_position(sj.position.Learned()), EVERYWHERE),
        (lambda: testing.check_sublayer(Squared()), EVERYWHERE | OF_SUBLAYERS),
        (lambda: testing.check_sublayer(sj.Attention(n_heads=2)), EVERYWHERE | OF_SUBLAYERS | {"check_documents"}),
        (lambda: testing.check_sublayer(Squared(), causal=False), {"check_scan", "check_dtype"} | OF_SUBLAYERS),
    ],
    ids=["recipe", "position", "position on the stream", "sublayer", "attention", "sublayer of an encoder"],
)
def test_what_each_suite_runs_and_calls_it(run, expected, monkeypatch):
    ran = {}
    for name in testing.__all__:
        if name.startswith("check_") and hasattr(suite, name):
            monkeypatch.setattr(suite, name, lambda *_, name=name, **options: ran.update({name: options}))
    run()
    assert set(ran) == expected
    subjects = {options["subject"] for options in ran.values() if "subject" in options}
    assert subjects <= {repr(Slope()), repr(sj.position.Learned()), repr(Squared()), repr(sj.Attention(n_heads=2))}
    assert len(subjects) == ("check_prefix" not in ran)
