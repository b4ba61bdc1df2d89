"""Latent attention against NumPy, against its own two forms, and against transformers' DeepSeek-V3."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import blockwise
from stackjax.testing import largest_difference, normal, perturbed
from tests.helpers import daily, filled

SUB = sj.LatentAttention(n_heads=3, d_head=4, d_rotary=6, d_latent=5, d_query_latent=7, d_value=2)
D, T = 16, 6
ROTARY = sj.position.Rotary(interleaved=True)


def parameters(sublayer, dtype=jnp.float64):
    declaration = sj.parameter.declare(sublayer.spec(D))
    return perturbed(sj.parameter.realise(jax.random.key(0), declaration, dtype=dtype))


def run(sublayer, params, x, **side_inputs):
    side_inputs = sj.SideInputs(**side_inputs)

    @jax.jit
    def applied(params, x):
        table = sublayer.prepare({}, side_inputs, x.shape[-2], D)
        return sublayer.apply(params, x, side_inputs.replace(prepared=table))

    return applied(params, x)


def by_hand(p, x, sublayer):
    """DeepSeek-V2's eq. (9) to (19), one head and one query at a time."""

    def rms(x, scale):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale

    def turned(x):
        n = x.shape[-1] // 2
        angle = np.arange(len(x))[:, None] * 10_000.0 ** (-np.arange(n) / n)
        z = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * angle)
        return np.stack((z.real, z.imag), -1).reshape(x.shape)

    k, r, v, h = sublayer.d_head, sublayer.d_rotary, sublayer.value_width, sublayer.n_heads
    latent = rms(x @ p["latent"], p["latent_norm"]["scale"])
    query = rms(x @ p["query_latent"], p["query_norm"]["scale"]) @ p["query"]
    key_rotary = turned(x @ p["rotary"])
    heads = []
    for i in range(h):
        q = query[:, i * (k + r) : (i + 1) * (k + r)]
        q = np.concatenate((q[:, :k], turned(q[:, k:])), -1)
        key = np.concatenate((latent @ p["key"][:, i * k : (i + 1) * k], key_rotary), -1)
        logits = q @ key.T / np.sqrt(k + r)
        logits = np.where(np.tril(np.ones_like(logits)) > 0, logits, -np.inf)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ latent @ p["value"][:, i * v : (i + 1) * v])
    return np.concatenate(heads, -1) @ p["out"]


def test_against_numpy(x64):
    params, x = parameters(SUB), normal(2, T, D, key=1)
    y, _ = run(SUB, params, x)
    wanted = [by_hand(jax.tree.map(np.asarray, params), np.asarray(row), SUB) for row in x]
    assert largest_difference(y, np.stack(wanted)) < 1e-12


@pytest.mark.thorough
def test_absorbed_is_expanded(x64):
    params, x = parameters(SUB), normal(2, T, D, key=1)

    class Absorbed(sj.LatentAttention):
        def _absorbing(self, n_queries, n_keys):
            return True

    sizes = {field.name: getattr(SUB, field.name) for field in dataclasses.fields(SUB)}
    assert not SUB._absorbing(T, T)

    def loss(params, sublayer):
        y, out = run(sublayer, params, x)
        return jnp.sum(jnp.sin(y)), (y, out.intermediates["weights"])

    both = [jax.value_and_grad(loss, has_aux=True)(params, sublayer) for sublayer in (SUB, Absorbed(**sizes))]
    assert largest_difference(*both) < 1e-10


@pytest.mark.parametrize("position", daily([ROTARY, sj.position.ALiBi()], ROTARY))
@pytest.mark.parametrize("causal", daily([True, False], True))
@pytest.mark.parametrize("absorbed", [True, False])
def test_blockwise_is_the_same(x64, monkeypatch, absorbed, causal, position):
    """Both forms, in values and gradients, with padding and packed documents, over several blocks."""
    monkeypatch.setattr(blockwise, "BLOCK", 4)
    monkeypatch.setattr(sj.LatentAttention, "_absorbing", lambda *_: absorbed)
    plain = dataclasses.replace(SUB, causal=causal, position=position, backend="plain")
    where = {
        "index": jnp.stack([jnp.r_[-1, -1, jnp.arange(9)], jnp.r_[jnp.arange(6), jnp.arange(5)]]),
        "segment": jnp.stack([jnp.zeros(11, int), jnp.r_[jnp.zeros(6, int), jnp.ones(5, int)]]),
    }
    x, weights = normal(2, 11, D, key=1), normal(2, 11, D, key=2)

    def both(sublayer):
        def total(params, x):
            return jnp.sum(weights * run(sublayer, params, x, position=where)[0])

        return jax.jit(jax.value_and_grad(total, (0, 1)))(parameters(SUB), x)

    expected, found = both(plain), both(dataclasses.replace(plain, backend="blockwise"))
    assert largest_difference(found, expected) < 1e-13


def test_blockwise_is_taken_for_long_inputs():
    def seen(sublayer, n_tokens):
        x = jnp.ones((1, n_tokens, D))
        return jax.eval_shape(lambda: run(sublayer, parameters(SUB, jnp.float32), x)[1].intermediates)

    assert "weights" in seen(SUB, 64) and "weights" not in seen(SUB, 1024)
    assert "weights" in seen(dataclasses.replace(SUB, backend="plain"), 1024)


def test_takes_the_cheaper_form():
    deepseek_v3 = sj.LatentAttention(n_heads=128, d_head=128, d_rotary=64, d_latent=512, d_query_latent=1536)
    assert deepseek_v3._absorbing(1, 4096) and not deepseek_v3._absorbing(4096, 4096)


def test_caches_the_latent_alone():
    cache = SUB.cache(2, 9, D, jnp.float32)
    assert {name: leaf.shape for name, leaf in cache.items()} == {"latent": (2, 9, 5 + 6)}


@pytest.mark.thorough
def test_direct_queries_and_leading_axes(x64):
    sublayer = sj.LatentAttention(n_heads=2, d_head=4, d_rotary=2, d_latent=5)
    params, x = parameters(sublayer), normal(3, 2, T, D, key=1)
    leaves = {"query", "latent", "latent_norm", "rotary", "key", "value", "inner_norm", "out"}
    assert set(params) == leaves | {"position"} and params["position"] == {}
    whole = run(sublayer, params, x)[0]
    assert largest_difference(whole[1], run(sublayer, params, x[1])[0]) < 1e-13


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="d_rotary must be positive"):
        sj.LatentAttention(n_heads=2, d_head=4, d_rotary=0, d_latent=5)

    class Scores(sj.position.Position):
        def score(self, params, table, query, key):
            return None

    with pytest.raises(ValueError, match="does not keep"):
        sj.LatentAttention(n_heads=2, d_head=4, d_rotary=2, d_latent=5, position=Scores())
    with pytest.raises(ValueError, match="value residual needs"):
        sj.decoder(d_model=16, depth=2, attention=SUB, recipe=sj.recipe.ValueResidual())


@pytest.mark.parity
@pytest.mark.parametrize("query_latent", [7, None])
def test_against_transformers(x64, query_latent):
    torch = pytest.importorskip("torch")
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as theirs
    from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config

    config = DeepseekV3Config(
        hidden_size=D,
        num_attention_heads=3,
        num_key_value_heads=3,
        q_lora_rank=query_latent,
        kv_lora_rank=5,
        qk_nope_head_dim=4,
        qk_rope_head_dim=6,
        v_head_dim=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        attn_implementation="eager",
    )
    config.head_dim = 6
    torch.manual_seed(0)
    attention = theirs.DeepseekV3Attention(config, 0).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = normal(2, T, D, key=1)
    where = torch.arange(T)[None]
    angles = theirs.DeepseekV3RotaryEmbedding(config).double()(torch.zeros(1, dtype=torch.double), where)
    mask = torch.full((T, T), -torch.inf, dtype=torch.double).triu(1)[None, None]
    with torch.no_grad():
        wanted, _ = attention(torch.tensor(np.asarray(x)), angles, mask)

    w = {name: jnp.asarray(value.detach().numpy()) for name, value in attention.named_parameters()}
    up = w["kv_b_proj.weight"].T.reshape(5, 3, 4 + 2)
    down = w["kv_a_proj_with_mqa.weight"].T
    weights = {
        "query": w["q_proj.weight" if query_latent is None else "q_b_proj.weight"].T,
        "latent": down[:, :5],
        "rotary": down[:, 5:],
        "latent_norm/scale": w["kv_a_layernorm.weight"],
        "key": up[..., :4].reshape(5, 12),
        "value": up[..., 4:].reshape(5, 6),
        "out": w["o_proj.weight"].T,
    }
    if query_latent is not None:
        weights |= {"query_latent": w["q_a_proj.weight"].T, "query_norm/scale": w["q_a_layernorm.weight"]}
    sublayer = sj.LatentAttention(n_heads=3, d_head=4, d_rotary=6, d_latent=5, d_query_latent=query_latent, d_value=2)
    params = filled(parameters(sublayer), weights)
    # Their norms and angles are in float32.
    assert largest_difference(run(sublayer, params, x)[0], wanted.numpy()) < 1e-6
