"""Layers taken apart for decoding: the same numbers as a scan, and products that read weights and cache in place."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

import stackjax as sj
from stackjax.testing import largest_difference, normal, perturbed
from stackjax.unrolled import unrolled
from tests.helpers import daily

V, D, B = 11, 16, 3
ROTARY = sj.position.Rotary()


def model_of(*layers, depth, recipe=sj.recipe.PreNorm(), d_model=D, **options):
    stack = sj.Stack.of(*layers, depth=depth, d_model=d_model, recipe=recipe, **options)
    return sj.Model(embedding=sj.Embedding(vocab=V), stack=stack)


def layer(*, cross=False, kind=sj.Attention, forward=24, **attention):
    memory = (sj.Attention(name="memory", n_heads=2, cross=True),) * cross
    mixer = kind(n_heads=2, position=ROTARY, **attention)
    return sj.Layer(sublayers=(mixer, *memory, sj.FeedForward(d_hidden=forward)))


KINDS = {
    "a pattern": (model_of(layer(window=3), layer(), depth=4), [1, 1]),
    "a history": (model_of(layer(), depth=2, recipe=sj.recipe.AttentionResiduals()), [1, 1]),
    "keys of another layer": (model_of(layer(), layer(kind=sj.CrossLayerAttention), depth=4), [1, 1]),
    "a memory": (model_of(layer(cross=True), depth=2), [1, 1]),
    "a loop": (model_of(layer(), depth=3, looped=True), [3]),
    "unlike layers": (model_of(*(layer(window=2 + i) for i in range(9)), depth=9), [9]),
    "no layers": (model_of(layer(), depth=0), [0]),
}
"""Models, and how often the patterns are repeated in what they are taken apart to."""


@pytest.mark.parametrize("kind", daily(KINDS, "a memory"))
def test_the_scan_and_the_layers_apart_agree(kind, x64):
    model, repeats = KINDS[kind]
    params = perturbed(model.init(jax.random.key(0), jnp.float64), size=0.3)
    memory = normal(B, 4, D).astype(jnp.float64) if kind == "a memory" else None
    tokens = jax.random.randint(jax.random.key(1), (B, 6), 0, V)
    index = jnp.where(jnp.arange(4) < jnp.array([[4], [2], [1]]), jnp.arange(4), -1)
    models = [model]

    @jax.jit
    def both(params):
        where = sj.SideInputs(position={"index": index}, memory=memory)
        begun = sj.prompt.start(model, params, tokens[:, :4], where, 2, dtype=jnp.float64)
        apart, *arrays = unrolled(model, params, begun.cache)
        models.append(apart)
        logits = []
        for one, (stored, cache) in zip(models, ((params, begun.cache), arrays), strict=True):
            for step in range(2):
                token, at = tokens[:, 4 + step], begun.index + step
                row, cache = sj.decode.follow(one, stored, token, at, cache, dtype=jnp.float64)
                logits.append(row)
        return logits[:2], logits[2:]

    scanned, apart = both(params)
    assert [segment.n for segment in models[1].stack.segments] == repeats
    assert largest_difference(apart, scanned) < 1e-12


IN_PLACE = ("scatter", "dynamic-update-slice")
"""Instructions that write a part of an array where it lies."""
FREE = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant", *IN_PLACE)
"""Instructions that make no array."""


def moved_in_the_token_loop(text, n_tokens):
    """The entries of the largest array that a program's loop over tokens makes, one written in place left out."""
    parts = re.split(r"\n(?=(?:ENTRY )?%)", text)
    computations = {re.match(r"(?:ENTRY )?%(\S+)", part)[1]: part for part in parts[1:]}
    line = r"^ +(ROOT )?%\S+ = (\(.*?\)|\S+) ([\w-]+)\((.*)$"

    def lines(name):
        return re.findall(line, computations[name], re.M)

    def called(rest):
        return re.findall(r"(?:body|to_apply|calls)=%([\w.-]+)", rest)

    def in_place(name):
        (root,) = (kind for is_root, _, kind, _ in lines(name) if is_root)
        return root in IN_PLACE

    def largest(name):
        sizes = [0]
        for _, shape, kind, rest in lines(name):
            if kind in ("while", "call", "conditional"):
                sizes += map(largest, called(rest))
            elif kind not in FREE and not (kind == "fusion" and any(map(in_place, called(rest)))):
                sizes += [math.prod(map(int, x.split(","))) for x in re.findall(r"\[([\d,]+)\]", shape)]
        return max(sizes)

    whiles = [(shape, rest) for name in computations for _, shape, kind, rest in lines(name) if kind == "while"]
    (body,) = {called(rest)[0] for shape, rest in whiles if f"s32[{B},{n_tokens}]" in shape}
    return largest(body)


@pytest.mark.parametrize("deepest", [0, 3])
def test_the_loop_over_tokens_copies_neither_weights_nor_cache(deepest, monkeypatch):
    """A scan does: so the test would see it."""
    monkeypatch.setattr(sj.unrolled, "DEEPEST", deepest)
    model = model_of(layer(forward=128), depth=3, d_model=32)
    params = jax.eval_shape(model.init, jax.random.key(0))
    n_tokens, capacity = 48 + deepest, 64  # differs, so that nothing compiled before is found
    tokens = jax.ShapeDtypeStruct((B, capacity - n_tokens), jnp.int32)
    run = jax.jit(partial(sj.decode.generate, model, n_tokens=n_tokens))
    largest = moved_in_the_token_loop(run.lower(params, tokens).compile().as_text(), n_tokens)
    weight, entries = 32 * 32, B * capacity * 32
    assert largest < weight if deepest == 3 else largest >= entries


def test_where_a_scan_copies_nothing_it_stays(monkeypatch):
    model, _ = KINDS["a memory"]
    params, cache = {"stack": {"segments": {}}}, sj.sublayer.Cache(position={}, segments={})
    given = model, params, cache
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert unrolled(*given) == given
    monkeypatch.undo()
    with pytest.raises(KeyError):
        unrolled(*given)
    monkeypatch.setattr(sj.unrolled, "DEEPEST", 1)
    assert unrolled(*given) == given
