"""Shapes and dtypes that functions of arrays announce: each says them, and they hold for what it takes and gives."""

import importlib
import inspect
import pkgutil
import typing

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from beartype import beartype

from stackjax import blockwise, dot_product, feed_forward, loss, norm, position, sample
from stackjax.sublayer import Positions
from stackjax.testing import normal

ENCODINGS = [
    importlib.import_module(f"stackjax.position.{module.name}") for module in pkgutil.iter_modules(position.__path__)
]


def leaves(annotation):
    """The types that an annotation is made of, but for positions, of which each kind has a shape of its own."""
    inner = () if annotation == Positions else typing.get_args(annotation)
    return [leaf for part in inner for leaf in leaves(part)] if inner else [annotation]


def announced():
    """{name: (function, the types in its signature)} of all public functions that take or return arrays."""
    for module in (norm, feed_forward, dot_product, blockwise, loss, sample, *ENCODINGS):
        for name, thing in vars(module).items():
            function = inspect.unwrap(thing) if callable(thing) and not inspect.isclass(thing) else None
            if name.startswith("_") or getattr(function, "__module__", None) != module.__name__:
                continue
            types = [leaf for part in inspect.get_annotations(function).values() for leaf in leaves(part)]
            if any(inspect.isclass(kind) and issubclass(kind, (jax.Array, jaxtyping.AbstractArray)) for kind in types):
                yield name, (function, types)


FUNCTIONS = dict(announced())


def run(name, *arguments, **options):
    """Trace a call of a function with its announcement checked."""
    checked = jaxtyping.jaxtyped(typechecker=beartype)(FUNCTIONS[name][0])
    return jax.eval_shape(lambda: checked(*arguments, **options))


def drawn(*shape):
    return normal(*shape, dtype=jnp.float32)


X, INTEGERS = drawn(2, 5, 8), jnp.ones((2, 5), jnp.int32)
QUERY, KEY = drawn(2, 5, 4, 3), drawn(2, 6, 2, 3)
MASK, WEIGHTS = jnp.ones((1, 1, 5, 6), bool), drawn(2, 4, 5, 6)
MATRICES = {"gate": drawn(8, 3), "up": drawn(8, 3), "down": drawn(3, 8)}
AFFINE = {"scale": jnp.ones(8), "bias": jnp.ones(8)}
ANGLE, PATHS = drawn(1, 5, 1), jnp.zeros((2, 5, 3), jnp.int32)
PLACE, OTHER = ({"index": jnp.arange(n)[None]} for n in (5, 6))
RANGES = dot_product.ranges(PLACE)
SCORES = blockwise.Scores(scale=1.0)


def call(*arguments, **options):
    """Arguments and options of a call."""
    return arguments, options


FITS = {
    "upcast": [call(X.astype(jnp.bfloat16)), call(INTEGERS)],
    "unit_rms": [call(X, 1e-6)],
    "layer_norm": [call(AFFINE, X), call({}, X[0, 0])],
    "rms_norm": [call({}, X.astype(jnp.bfloat16))],
    "dynamic_tanh": [call({**AFFINE, "alpha": jnp.ones(())}, X)],
    "batch_norm": [call({**AFFINE, "mean": jnp.zeros(8), "variance": jnp.ones(8)}, X, training=True)],
    **{
        name: [call(X), call(X[0, 0, 0])]
        for name in ("relu", "squared_relu", "gelu", "gelu_tanh", "gelu_sigmoid", "silu", "identity")
    },
    "keep_slope": [call(jnp.tanh, X)],
    "two_layer": [call(MATRICES, X)],
    "gated": [call(MATRICES, X[0])],
    "softmax": [call(X)],
    "wide_einsum": [call("btk,kn->btn", X, X[0].T)],
    "behind": [call(KEY, KEY[:, :2]), call(X, X[:, :2])],
    "joined": [call((KEY, KEY[:, :2])), call(KEY)],
    "attention_logits": [
        call(QUERY, KEY, scale=1.0, mask=MASK, bias=WEIGHTS[:1], soft_cap=5.0),
        call(QUERY, (KEY[:, :2], KEY[:, 2:]), scale=1.0, mask=MASK),
    ],
    "attention_weights": [call(QUERY, KEY, scale=1.0, mask=MASK, sinks=jnp.ones(4))],
    "weighted_sum": [call(WEIGHTS, KEY), call(WEIGHTS, (KEY[:, :2], KEY[:, 2:]))],
    "dot_product_attention": [call(QUERY, KEY, KEY[..., :2], scale=1.0)],
    "fused_attention": [call(QUERY, KEY, KEY, backend="xla", scale=1.0, mask=MASK, bias=WEIGHTS)],
    "blockwise_attention": [call(SCORES, {"position": {}, "shared": {}}, QUERY, KEY, KEY, (PLACE, OTHER), block=3)],
    "visible": [call(PLACE, OTHER, causal=True)],
    "ranges": [call(PLACE)],
    "may_meet": [call(RANGES, RANGES, causal=True)],
    "blockwise_cross_entropy": [call(lambda x: x, X, INTEGERS, block=2), call(lambda x: x, X[0], INTEGERS[0])],
    "cross_entropy": [call(X, INTEGERS), call(X, INTEGERS, jnp.ones((2, 5)))],
    "next_token": [call(X, INTEGERS), call(X[0], INTEGERS[0], jnp.ones(5))],
    "temperature": [call(X, 0.5)],
    "top_k": [call(X, 2)],
    "top_p": [call(X, jnp.ones((2, 5, 1)))],
    "draw": [call(jax.random.key(0), X, top_k=2), call(None, X[0, 0])],
    "stop_tokens": [call(3, 8), call([1, 2], 8), call(None, 8)],
    "total": [call([None, X, X]), call([])],
    "sinusoid": [call(INTEGERS, 4), call(drawn(3), 6)],
    "turn": [call(QUERY, ANGLE, ANGLE)],
    "to_halves": [call(X, d_head=4)],
    "to_interleaved": [call(X[0, 0], d_head=4)],
    "exponents": [call(6)],
    "distance": [call(PLACE, OTHER)],
    "look_up": [call(MATRICES["up"], INTEGERS)],
    "bucket": [call(INTEGERS, bidirectional=True)],
    "path_of": [call({"path": PATHS}, "a test")],
    "depth_of": [call(PATHS)],
    "relate": [call(PATHS[:1], PATHS[:, :4])],
    "left_child_right_sibling": [call(PATHS, 7)],
}
"""Calls of each function."""


def test_no_array_is_without_a_shape():
    assert [name for name, (_, types) in FUNCTIONS.items() if jax.Array in types] == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_fits_is_taken_and_gives_what_is_announced(name):
    for arguments, options in FITS[name]:
        run(name, *arguments, **options)


REFUSED = [
    ("layer_norm", call({}, INTEGERS)),
    ("gelu", call(INTEGERS)),
    ("attention_logits", call(QUERY, KEY[..., :2], scale=1.0)),
    ("attention_logits", call(QUERY, KEY, scale=1.0, mask=WEIGHTS)),
    ("attention_logits", call(QUERY, KEY, scale=1.0, mask=MASK[..., :5])),
    ("attention_weights", call(QUERY, KEY, scale=1.0, sinks=jnp.ones(3))),
    ("dot_product_attention", call(QUERY, KEY, KEY[:, :3], scale=1.0)),
    ("weighted_sum", call(WEIGHTS, KEY[:, :5])),
    ("cross_entropy", call(X, INTEGERS[:, :4])),
    ("cross_entropy", call(X, X[..., 0])),
    ("next_token", call(X, INTEGERS, jnp.ones((2, 4)))),
    ("top_k", call(INTEGERS, 2)),
    ("turn", call(QUERY, ANGLE, jnp.tile(ANGLE, 2))),
    ("turn", call(QUERY, ANGLE[:, :4], ANGLE[:, :4])),
    ("look_up", call(MATRICES["up"], X)),
    ("relate", call(PATHS, PATHS[..., :2])),
    ("bucket", call(X, bidirectional=True)),
]


@pytest.mark.parametrize(("name", "arguments"), REFUSED)
def test_what_does_not_fit_is_told(name, arguments):
    with pytest.raises(jaxtyping.TypeCheckError):
        run(name, *arguments[0], **arguments[1])
