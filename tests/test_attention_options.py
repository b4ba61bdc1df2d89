"""Gates on heads, chunked attention, and cross-attention's own rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.testing import largest_difference, normal, perturbed
from tests.helpers import daily, filled

D, T = 16, 7


def parameters(sublayer):
    return perturbed(sj.parameter.realise(jax.random.key(0), sj.parameter.declare(sublayer.spec(D)), dtype=jnp.float64))


def run(sublayer, params, x, **side_inputs):
    side_inputs = sj.SideInputs(**side_inputs)

    @jax.jit
    def applied(params, x):
        table = sublayer.prepare({}, side_inputs, x.shape[-2], D)
        return sublayer.apply(params, x, side_inputs.replace(prepared=table))

    return applied(params, x)


@pytest.mark.parametrize("gate", ["head", "feature"])
@pytest.mark.parametrize("backend", daily(["plain", "xla"], "plain"))
def test_gate_multiplies_the_heads(x64, gate, backend):
    sublayer = sj.Attention(n_heads=2, gate=gate, bias=("gate",), backend=backend)
    params, x = parameters(sublayer), normal(2, T, D, key=1)
    assert params["gate"].shape == (D, {"head": 2, "feature": D}[gate])
    plain = sj.Attention(n_heads=2)
    heads = run(plain, {**params, "out": jnp.eye(D)}, x)[0]
    opened = 1 / (1 + np.exp(-(x @ params["gate"] + params["gate_bias"])))
    if gate == "head":
        opened = np.repeat(opened, D // 2, -1)
    tolerance = 1e-12 if backend == "plain" else 1e-6
    assert largest_difference(run(sublayer, params, x)[0], (heads * opened) @ params["out"]) < tolerance


def test_gate_is_declared_with_the_queries():
    assert sj.Attention(n_heads=2, gate="head").spec(D)["gate"].role == "query"
    assert sj.Attention(n_heads=2, gate="head", cross=True).spec(D)["gate"].role == "cross_query"
    with pytest.raises(ValueError, match="gate must be"):
        sj.Attention(n_heads=2, gate="heads")


@pytest.mark.parametrize("backend", daily(["plain", "xla"], "plain"))
def test_chunks_do_not_see_each_other(x64, backend):
    """Each chunk is a document of its own: the same as running the chunks as a batch."""
    sublayer = sj.Attention(n_heads=2, chunk=3, backend=backend)
    params, x = parameters(sublayer), normal(2, 6, D, key=1)
    apart = run(sj.Attention(n_heads=2), params, x.reshape(4, 3, D))[0].reshape(x.shape)
    assert largest_difference(run(sublayer, params, x)[0], apart) < (1e-12 if backend == "plain" else 1e-6)
    with pytest.raises(ValueError, match="chunk must be positive"):
        sj.Attention(n_heads=2, chunk=0)


def test_cross_attention_sees_the_whole_memory(x64):
    sublayer = sj.Attention(n_heads=2, cross=True)
    params, x, memory = parameters(sublayer), normal(2, T, D, key=1), normal(2, 9, D, key=2)
    _, out = run(sublayer, params, x, memory=memory)
    assert out.intermediates["weights"].shape == (2, 2, T, 9) and out.intermediates["weights"].min() > 0


@pytest.mark.parity
def test_gate_against_transformers(x64):
    torch = pytest.importorskip("torch")
    from transformers.models.qwen3_next import modeling_qwen3_next as theirs
    from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig

    config = Qwen3NextConfig(
        hidden_size=D,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
        attn_implementation="eager",
    )
    attention = theirs.Qwen3NextAttention(config, 0).double()
    torch.manual_seed(0)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    x = normal(2, T, D, key=1)
    angles = theirs.Qwen3NextRotaryEmbedding(config).double()(torch.zeros(1, dtype=torch.double), torch.arange(T)[None])
    mask = torch.full((T, T), -torch.inf, dtype=torch.double).triu(1)[None, None]
    with torch.no_grad():
        wanted, _ = attention(torch.tensor(np.asarray(x)), angles, mask)
    w = {name: jnp.asarray(value.detach().numpy()) for name, value in attention.named_parameters()}
    query, gate = jnp.split(w["q_proj.weight"].T.reshape(D, 4, 16), 2, -1)
    weights = {
        "query": query.reshape(D, 32),
        "gate": gate.reshape(D, 32),
        "key": w["k_proj.weight"].T,
        "value": w["v_proj.weight"].T,
        "out": w["o_proj.weight"].T,
        "query_norm/scale": 1 + w["q_norm.weight"],
        "key_norm/scale": 1 + w["k_norm.weight"],
    }
    sublayer = sj.Attention(
        n_heads=4,
        n_kv_heads=2,
        d_head=8,
        gate="feature",
        qk_norm=sj.RMSNorm(),
        position=sj.position.Rotary(d_rotary=4),
    )
    params = filled(parameters(sublayer), weights)
    assert largest_difference(run(sublayer, params, x)[0], wanted.numpy()) < 1e-6
