"""The backend of attention that is taken on each machine, and what cuDNN is asked for."""

import jax
import jax.numpy as jnp
import pytest

import stackjax as sj
from stackjax import backend, dot_product
from stackjax.testing import normal

PACKED = {"index": jnp.tile(jnp.arange(1024), 2)[None], "segment": jnp.repeat(jnp.arange(2), 1024)[None]}


@pytest.fixture
def on_a_gpu(monkeypatch):
    """A machine that says it has a GPU, and what is asked of cuDNN there, computed by XLA."""
    asked, kernel_of_jax = [], jax.nn.dot_product_attention

    def kernel(query, key, value, **options):
        asked.append(options)
        return kernel_of_jax(query, key, value, **{**options, "implementation": "xla"})

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    return asked


@pytest.mark.parametrize(
    ("dtype", "options", "position", "n_tokens", "mask"),
    [
        ("bfloat16", {}, None, 2048, False),
        ("bfloat16", {}, PACKED, 2048, True),
        ("bfloat16", {"window": 64}, None, 2048, False),
        ("bfloat16", {"position": sj.position.ALiBi()}, None, 512, False),
    ],
)
def test_a_kernel_is_taken_where_it_can_express_the_case(on_a_gpu, dtype, options, position, n_tokens, mask):
    model = sj.decoder(vocab=8, d_model=16, depth=1, attention=sj.Attention(n_heads=2, **options))
    side_inputs, tokens = sj.SideInputs(position=position), jax.ShapeDtypeStruct((1, n_tokens), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0))
    jax.eval_shape(lambda params, x: model.apply(params, x, side_inputs, dtype=dtype)[0], params, tokens)
    assert [(one["implementation"], one["mask"] is not None) for one in on_a_gpu] == [("cudnn", mask)]
    assert mask is False or on_a_gpu[0]["mask"].shape == (1, 1, n_tokens, n_tokens)


@pytest.mark.parametrize(
    ("dtype", "options", "position", "n_tokens"),
    [
        ("float32", {}, None, 64),
        ("bfloat16", {"soft_cap": 5.0}, None, 64),
        ("bfloat16", {"position": sj.position.ALiBi()}, None, 2048),
        (
            "bfloat16",
            {},
            {name: jnp.tile(x, 2) for name, x in PACKED.items()} | {"segment": jnp.arange(4096)[None]},
            4096,
        ),
    ],
)
def test_no_kernel_is_taken_where_it_cannot_or_where_blocks_are_better(on_a_gpu, dtype, options, position, n_tokens):
    model = sj.decoder(vocab=8, d_model=16, depth=1, attention=sj.Attention(n_heads=2, **options))
    side_inputs, tokens = sj.SideInputs(position=position), jax.ShapeDtypeStruct((1, n_tokens), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0))
    jax.eval_shape(lambda params, x: model.apply(params, x, side_inputs, dtype=dtype)[0], params, tokens)
    assert on_a_gpu == []


@pytest.mark.parametrize(("n_tokens", "taken"), [(1, False), (4, False), (64, True)])
def test_a_few_new_tokens_read_a_cache_without_a_kernel(on_a_gpu, n_tokens, taken):
    """For it the cache would have to be copied into one array with them."""
    model = sj.decoder(vocab=8, d_model=16, depth=1, n_heads=2)
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((1, n_tokens), jnp.int32)

    def read(params, tokens):
        where = sj.SideInputs(position={"index": jnp.broadcast_to(jnp.arange(n_tokens), tokens.shape)})
        cache = sj.cache.empty(model.stack, params["stack"], where, 256, dtype=jnp.bfloat16)
        return sj.decode.extend(model, params, tokens, where, cache, dtype=jnp.bfloat16)

    jax.eval_shape(read, params, tokens)
    assert [one["implementation"] for one in on_a_gpu] == ["cudnn"] * taken


def test_cudnn_is_never_given_a_window_ahead(on_a_gpu):
    """It has none: one that looks both ways is a mask."""
    query, key, value = (normal(1, 6, 2, 4, key=i, dtype=jnp.float32) for i in range(3))
    found = dot_product.fused_attention(query, key, value, backend="cudnn", scale=0.5, window=2)
    where = dot_product.first_positions(6)
    mask = dot_product.visible(where, where, window=2)
    expected = dot_product.dot_product_attention(query, key, value, scale=0.5, mask=mask)
    assert on_a_gpu[0]["local_window_size"] is None and on_a_gpu[0]["mask"] is not None
    assert jnp.allclose(found, expected, atol=1e-6)
    dot_product.fused_attention(query, key, value, backend="cudnn", scale=0.5, window=2, causal=True)
    assert on_a_gpu[1]["local_window_size"] == (1, 0) and on_a_gpu[1]["mask"] is None


def test_what_is_asked_for_is_taken():
    for asked in ("plain", "blockwise", "xla", "cudnn"):
        assert backend.choose(asked, jnp.float32, fuses=False, blockwise=False, edited=False) == asked
    with pytest.raises(ValueError, match="makes no weights to edit"):
        backend.choose("xla", jnp.float32, fuses=True, blockwise=False, edited=True)
