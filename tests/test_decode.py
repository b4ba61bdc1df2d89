"""Decoding: generation against running the whole text again, rings, compiles, memory, and stopping.

That logits equal those of the full forward pass for every recipe, position and kind of stack is in test_conformance.
"""

import dataclasses
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.testing import largest_difference, perturbed
from tests.helpers import output

V, D = 11, 16
SIZES = {"vocab": V, "d_model": D, "n_heads": 2, "feed_forward": sj.FeedForward(d_hidden=24)}
MODEL = sj.decoder(**SIZES, depth=2)
PARAMS = perturbed(MODEL.init(jax.random.key(0)), size=0.3)
PROMPTS = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]]
LONGEST = 24
"""Tokens of the longest text here; one compile for all of them."""


@partial(jax.jit, static_argnums=0)
def log_probabilities(model, params, tokens, side_inputs):
    return jax.nn.log_softmax(model.apply(params, tokens, side_inputs)[0][0])


def again(model, params, prompt, n, side_inputs=None):
    """Greedy, with a full forward pass for each token; tokens and their log-probabilities."""
    tokens, seen = list(prompt), []
    for _ in range(n):
        padded = jnp.array([tokens + [0] * (LONGEST - len(tokens))])
        log_prob = np.asarray(log_probabilities(model, params, padded, side_inputs))[len(tokens) - 1]
        tokens.append(int(log_prob.argmax()))
        seen.append(float(log_prob.max()))
    return tokens[len(prompt) :], seen


@pytest.mark.parametrize("left", [True, False])
def test_greedy_is_running_it_all_again(left):
    tokens, where = sj.decode.pad(PROMPTS, left=left)
    out = sj.decode.generate(MODEL, PARAMS, tokens, where, n_tokens=8)
    for row, prompt in enumerate(PROMPTS):
        wanted, log_prob = again(MODEL, PARAMS, prompt, 8)
        assert out.tokens[row].tolist() == wanted
        np.testing.assert_allclose(out.log_prob[row], log_prob, rtol=1e-4)
    assert out.length.tolist() == [8, 8, 8]


def test_encoder_decoder_generates():
    model = sj.encoder_decoder(**SIZES, depth=2)
    params = perturbed(model.init(jax.random.key(0)), size=0.3)
    source, known = sj.decode.pad([[1, 2, 3], [4, 5, 6, 7]], left=True)
    memory, _ = jax.jit(model.encode)(params, source, known)
    out = sj.decode.generate(
        model.decoder,
        params["decoder"],
        jnp.array([[1], [1]]),
        sj.SideInputs(memory=memory, memory_position=known.position),
        n_tokens=4,
    )
    for row in range(2):
        one = memory[row, known.position["index"][row] >= 0]
        side_inputs = sj.SideInputs(memory=one[None])
        assert out.tokens[row].tolist() == again(model.decoder, params["decoder"], [1], 4, side_inputs)[0]


def test_keys_and_values_of_the_memory_are_computed_once():
    """Once they are in the cache, no step reads the matrices that made them."""
    model = sj.encoder_decoder(**SIZES, depth=2)
    params = perturbed(model.init(jax.random.key(0)), size=0.3)

    @jax.jit
    def begin(params):
        memory, _ = model.encode(params, jnp.array([[1, 2, 3]]))
        return sj.prompt.start(model.decoder, params["decoder"], jnp.array([[1, 2]]), sj.SideInputs(memory=memory), 2)

    begun = begin(params)
    held = begun.cache.segments["0"]["0"]["cross_attention"]
    assert held["key"].shape == held["value"].shape == (2, 1, 2, 3, 8)

    def spoilt(path, leaf):
        name = sj.parameter.path_name(path)
        return jnp.full_like(leaf, jnp.nan) if name.endswith(("cross_attention/key", "cross_attention/value")) else leaf

    broken = jax.tree_util.tree_map_with_path(spoilt, params["decoder"])
    assert any(np.isnan(leaf).any() for leaf in jax.tree.leaves(broken))
    step = jax.jit(partial(sj.decode.follow, model.decoder))
    logits = [step(p, jnp.array([3]), begun.index, begun.cache)[0] for p in (params["decoder"], broken)]
    np.testing.assert_array_equal(*logits)


def test_one_compile_for_all_prompts_of_a_bucket(traced):
    counts = []
    for prompts in (PROMPTS, [[1], [2], [3]], [[4] * 8] * 3):
        tokens, where = sj.decode.pad(prompts, 8)
        for t in (0.5, 2.0):
            sj.decode.generate(
                MODEL, PARAMS, tokens, where, n_tokens=3, key=jax.random.key(0), temperature=t, top_k=3, top_p=0.9
            )
            counts.append(len(traced))
    twin = sj.decoder(**SIZES, depth=2)
    sj.decode.generate(
        twin, PARAMS, tokens, where, n_tokens=3, key=jax.random.key(1), temperature=1.0, top_k=5, top_p=0.5
    )
    assert [*counts, len(traced)] == counts[:1] * 7


@pytest.mark.parametrize(
    "attention",
    [
        sj.Attention(n_heads=4, n_kv_heads=2, position=sj.position.Rotary(), sinks=True),
        sj.LatentAttention(n_heads=4, d_head=4, d_rotary=4, d_latent=12),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_step_reads_the_cache_where_it_lies(attention):
    """No program joins, copies or turns a layer's entries, and the new ones are written into the buffers given."""
    model = sj.decoder(vocab=V, d_model=D, depth=16, attention=attention, feed_forward=sj.FeedForward(d_hidden=8))
    params = jax.eval_shape(model.init, jax.random.key(0))
    where = sj.SideInputs(position={"index": jnp.zeros((3, 1), jnp.int32)})
    step = jax.jit(partial(sj.decode.follow, model), donate_argnums=3)

    def compiled(capacity):
        """The program, and the bytes of the entries and of the temporary arrays."""
        cache = jax.eval_shape(lambda p: sj.cache.empty(model.stack, p["stack"], where, capacity), params)
        token = jax.ShapeDtypeStruct((3,), jnp.int32)
        program = step.lower(params, token, token, cache).compile()
        memory, leaves = program.memory_analysis(), jax.tree.leaves(cache.segments)
        n_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        assert memory.alias_size_in_bytes >= n_bytes
        return program, leaves[0].size // 16, n_bytes, memory.temp_size_in_bytes

    program, layer, *large = compiled(1024)
    moved = re.findall(r"= \w+\[([\d,]+)\]\S* (?:concatenate|copy|transpose|pad)\(", program.as_text())
    assert moved and max(math.prod(map(int, shape.split(","))) for shape in moved) < layer
    entries, temporary = np.subtract(large, compiled(512)[2:])
    assert temporary < 2 * entries / 16  # on a CPU the slice that a scan takes of its layer, and scores, less than that


def local_global():
    position = sj.position.Rotary()
    forward = sj.FeedForward(d_hidden=24)
    kinds = [sj.Attention(n_heads=2, position=position, **reach) for reach in ({"window": 3}, {"chunk": 4}, {})]
    layers = [sj.Layer(sublayers=(attention, forward)) for attention in kinds]
    stack = sj.Stack.of(*layers, depth=3, d_model=D, recipe=sj.recipe.PreNorm())
    return dataclasses.replace(MODEL, stack=stack)


def test_windows_keep_a_window():
    """Far beyond the ring, after a prompt longer than it."""
    model = local_global()
    params = perturbed(model.init(jax.random.key(0)), size=0.3)
    position = {"index": jnp.zeros((2, 1), jnp.int32)}
    cache = sj.cache.empty(model.stack, params["stack"], sj.SideInputs(position=position), 40)
    shapes = [cache.segments[str(i)]["0"]["attention"]["key"].shape for i in range(3)]
    assert shapes == [(1, 2, 2, capacity, 8) for capacity in (3, 4, 40)]
    assert {n: held["index"].shape for n, held in cache.position.items()} == {n: (2, n) for n in (3, 4, 40)}
    prompts = [list(range(9)), [1, 2]]
    tokens, where = sj.decode.pad(prompts)
    out = sj.decode.generate(model, params, tokens, where, n_tokens=12)
    for row, prompt in enumerate(prompts):
        assert out.tokens[row].tolist() == again(model, params, prompt, 12)[0]


def test_prompt_in_pieces(x64):
    """A prompt may come in several calls of any length, longer or shorter than the ring."""
    model = local_global()
    params = perturbed(model.init(jax.random.key(0), jnp.float64))
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, V)
    whole, _ = jax.jit(partial(model.apply, dtype=jnp.float64))(params, tokens)

    @jax.jit
    def in_pieces(params, tokens):
        position = {"index": jnp.broadcast_to(jnp.arange(12), (2, 12))}
        where = sj.SideInputs(position=position)
        cache = sj.cache.empty(model.stack, params["stack"], where, 12, dtype=jnp.float64)
        pieces = []
        for here in (slice(0, 5), slice(5, 7), slice(7, 12)):
            where = sj.SideInputs(position={"index": position["index"][:, here]})
            x, cache = sj.decode.extend(model, params, tokens[:, here], where, cache, dtype=jnp.float64)
            pieces.append(model.logits(params, x))
        return jnp.concatenate(pieces, 1)

    assert largest_difference(in_pieces(params, tokens), whole) < 1e-12


def test_stops_early_and_fills():
    tokens, where = sj.decode.pad(PROMPTS)
    free = sj.decode.generate(MODEL, PARAMS, tokens, where, n_tokens=8)
    stop = int(free.tokens[0, 2])
    out = sj.decode.generate(MODEL, PARAMS, tokens, where, n_tokens=8, stop=stop)
    for row in range(3):
        own = free.tokens[row].tolist()
        end = own.index(stop) + 1 if stop in own else 8
        assert out.length[row] == end
        assert out.tokens[row].tolist() == own[:end] + [stop] * (8 - end)
        np.testing.assert_array_equal(out.log_prob[row, end:], 0)
        np.testing.assert_allclose(out.log_prob[row, :end], free.log_prob[row, :end], rtol=1e-5)


def test_drawn_tokens_follow_the_model():
    """20,000 rows of one prompt: first and second token as often as the model says, within five deviations."""
    n = 20_000
    tokens = jnp.broadcast_to(jnp.array([3, 1]), (n, 2))
    out = sj.decode.generate(MODEL, PARAMS, tokens, n_tokens=2, key=jax.random.key(0), temperature=1.5)
    first = jax.nn.softmax(output(MODEL, PARAMS, tokens[0])[-1] / 1.5)
    texts = jnp.stack([jnp.array([3, 1, v]) for v in range(V)])
    second = first @ jax.nn.softmax(output(MODEL, PARAMS, texts)[:, -1] / 1.5)
    for column, wanted in enumerate((first, second)):
        seen = np.bincount(out.tokens[:, column], minlength=V) / n
        assert (np.abs(seen - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / n)).all()


def test_a_bag_of_everything_in_sixteen_bits():
    """Latent attention and experts from `decoder`, generated in bfloat16."""
    model = sj.decoder(
        vocab=V,
        d_model=D,
        depth=2,
        n_heads=2,
        attention=sj.LatentAttention(n_heads=2, d_head=4, d_rotary=4, d_latent=6),
        feed_forward=sj.MixtureOfExperts(n_experts=4, d_hidden=8),
    )
    params = model.init(jax.random.key(0))
    tokens, where = sj.decode.pad(PROMPTS)
    begun = jax.jit(lambda p: sj.prompt.start(model, p, tokens, where, 3, dtype=jnp.bfloat16))(params)
    assert begun.cache.segments["0"]["0"]["attention"]["latent"].dtype == jnp.bfloat16
    out = sj.decode.generate(model, params, tokens, where, n_tokens=3, dtype=jnp.bfloat16)
    assert out.tokens.shape == (3, 3) and np.isfinite(out.log_prob).all()


def test_a_step_does_not_copy_the_cache():
    model = sj.decoder(vocab=V, d_model=64, depth=8, n_heads=2)
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jnp.zeros((4, 2), jnp.int32)
    begun = jax.eval_shape(lambda params: sj.prompt.start(model, params, tokens, None, 510), params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(begun.cache))
    step = jax.jit(lambda *args: sj.decode.follow(model, *args), donate_argnums=3)
    memory = step.lower(params, tokens[:, 0], begun.index, begun.cache).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < 0.5 * size


def test_pad():
    tokens, where = sj.decode.pad([[5], [6, 7]], 3, left=True)
    assert tokens.tolist() == [[0, 0, 5], [0, 6, 7]] and where.position["index"].tolist() == [[-1, -1, 0], [-1, 0, 1]]
    tokens, where = sj.decode.pad([[5], [6, 7]])
    assert tokens.tolist() == [[5, 0], [6, 7]] and where.position["index"].tolist() == [[0, -1], [0, 1]]
    with pytest.raises(ValueError, match="1 to length=1"):
        sj.decode.pad([[5], [6, 7]], 1)
    with pytest.raises(ValueError, match="got 0 to 1"):
        sj.decode.pad([[5], []])


def test_says_what_is_wrong():
    short = sj.decoder(**SIZES, depth=1, position=sj.position.Learned(n_positions=6))
    params = short.init(jax.random.key(0))
    tokens = jnp.zeros((1, 4), jnp.int32)
    assert sj.decode.generate(short, params, tokens, n_tokens=2).tokens.shape == (1, 2)
    with pytest.raises(ValueError, match="4 \\+ 3 tokens"):
        sj.decode.generate(short, params, tokens, n_tokens=3)
    with pytest.raises(ValueError, match="n_tokens must be positive"):
        sj.decode.generate(short, params, tokens, n_tokens=0)
    where = {"index": jnp.arange(4)[None], "path": jnp.zeros((1, 4, 2), jnp.int32)}
    with pytest.raises(ValueError, match="only indices go on"):
        sj.decode.generate(short, params, tokens, sj.SideInputs(position=where), n_tokens=1)


def test_temperature_zero_generates_greedily():
    tokens, where = sj.decode.pad(PROMPTS)
    greedy = sj.decode.generate(MODEL, PARAMS, tokens, where, n_tokens=8)
    cold = sj.decode.generate(MODEL, PARAMS, tokens, where, n_tokens=8, key=jax.random.key(0), temperature=0.0)
    np.testing.assert_array_equal(cold.tokens, greedy.tokens)
    np.testing.assert_allclose(cold.log_prob, greedy.log_prob, rtol=1e-5)


def test_several_stop_tokens():
    """Each row ends at the first of them that it meets, and repeats that one."""
    tokens, where = sj.decode.pad(PROMPTS)
    free = sj.decode.generate(MODEL, PARAMS, tokens, where, n_tokens=8)
    stops = sorted({int(free.tokens[0, 4]), int(free.tokens[1, 2])})
    for several in (stops, stops[::-1], jnp.array(stops), [*stops, stops[0]]):
        out = sj.decode.generate(MODEL, PARAMS, tokens, where, n_tokens=8, stop=several)
        ends = set()
        for row in range(3):
            line = free.tokens[row].tolist()
            end = next((i + 1 for i, token in enumerate(line) if token in stops), 8)
            assert out.length[row] == end
            assert out.tokens[row].tolist() == line[:end] + [line[end - 1]] * (8 - end)
            np.testing.assert_array_equal(out.log_prob[row, end:], 0)
            ends |= {line[end - 1]} if end < 8 else set()
        assert len(ends) > 1 or len(stops) == 1


REFUSED = {
    "a number without a key": ({"temperature": 0.5}, "drawing by temperature needs a key"),
    "below zero": ({"temperature": -0.5, "key": jax.random.key(0)}, "temperature must be 0, .* got -0.5"),
    "no token": ({"top_k": 0, "key": jax.random.key(0)}, "top_k must be .* got 0"),
    "no probability": ({"top_p": 0.0, "key": jax.random.key(0)}, "top_p must be .* got 0.0"),
    "no such stop": ({"stop": V}, "stop must be 0 .. 10; got 11"),
    "one of the stops": ({"stop": [1, -1]}, "stop must be 0 .. 10; got -1"),
    "no stop": ({"stop": []}, "stop must be one token or several"),
    "stops by row": ({"stop": [[1], [2]]}, "stop must be one token or several"),
    "a stop that is none": ({"stop": 1.5}, "stop must be an array .* of integers"),
    "an empty prompt": (
        {"side_inputs": sj.SideInputs(position={"index": jnp.array([[0, 1], [-1, -1]])})},
        "every prompt needs a token; got a row whose indices are all -1",
    ),
    "indices with a gap": (
        {"side_inputs": sj.SideInputs(position={"index": jnp.array([[0, 1], [0, 90]])})},
        r"room for 4 tokens, one for each index",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_runs(name):
    options, message = REFUSED[name]
    if name == "indices with a gap":
        run = partial(sj.prompt.start, MODEL, PARAMS, jnp.zeros((2, 2), int), options["side_inputs"], 2)
    else:
        run = partial(sj.decode.generate, MODEL, PARAMS, jnp.zeros((2, 2), int), n_tokens=2, **options)
    with pytest.raises(ValueError, match=message):
        run()


def test_prompts_without_a_batch():
    with pytest.raises(ValueError, match=r"prompts must be \(B, T\), .*got the shape \(3,\)"):
        sj.decode.generate(MODEL, PARAMS, jnp.arange(3), n_tokens=1)


def test_an_empty_prompt_that_is_traced():
    position = {"index": jnp.array([[0, 1], [-1, -1]])}
    run = jax.jit(lambda position: sj.prompt.start(MODEL, PARAMS, jnp.zeros((2, 2), int), position, 2).logits)
    assert np.isnan(run(sj.SideInputs(position=position))).all(-1).tolist() == [False, True]
