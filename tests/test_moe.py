"""Experts against NumPy, the two dispatches against each other, and transformers' DeepSeek-V3 and Mixtral."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import moe
from stackjax.testing import largest_difference, normal, perturbed
from tests.helpers import filled

D, E, N = 8, 6, 10
SUB = sj.MixtureOfExperts(n_experts=E, top_k=2, d_hidden=5)
DEEPSEEK = replace(SUB, score="sigmoid", n_groups=3, top_groups=2, scale=2.5, bias_rate=0.1)


def parameters(sublayer, dtype=jnp.float64):
    declaration = sj.parameter.declare(sublayer.spec(D))
    return perturbed(sj.parameter.realise(jax.random.key(0), declaration, dtype=dtype))


def silu(x):
    return x / (1 + np.exp(-x))


def by_hand(p, x, sublayer):
    """One token at a time, one expert at a time."""
    p, y = jax.tree.map(np.asarray, p), np.zeros_like(x)
    for n, token in enumerate(np.asarray(x)):
        logits = token @ p["router"]
        scores = 1 / (1 + np.exp(-logits)) if sublayer.score == "sigmoid" else np.exp(logits) / np.exp(logits).sum()
        wanted = scores + p.get("bias", 0)
        groups = wanted.reshape(sublayer.n_groups, -1)
        best = np.argsort(np.sort(groups, -1)[:, -2:].sum(-1))[-sublayer.top_groups :]
        allowed = [e for e in range(E) if e // sublayer.group_size in best]
        chosen = sorted(allowed, key=lambda e: -wanted[e])[: sublayer.top_k]
        total = sum(scores[e] for e in chosen) if sublayer.normalised else 1
        for e in chosen:
            hidden = silu(token @ p["gate"][e]) * (token @ p["up"][e])
            if p["inner_norm"]:
                hidden = hidden / np.sqrt((hidden**2).mean() + 1e-6) * p["inner_norm"]["scale"][e]
            y[n] += sublayer.scale * scores[e] / total * (hidden @ p["down"][e])
    return y


@pytest.mark.parametrize("dispatch", ["ragged", "dense"])
@pytest.mark.parametrize(
    "sublayer",
    [SUB, replace(DEEPSEEK, inner_norm=sj.RMSNorm()), replace(SUB, top_k=1, normalised=False)],
    ids=["soft", "groups", "one"],
)
def test_against_numpy(x64, sublayer, dispatch):
    params, x = parameters(sublayer), normal(2, 5, D, key=1)
    apply = jax.jit(replace(sublayer, dispatch=dispatch).apply)
    y, _ = apply(params, x, sj.SideInputs())
    assert largest_difference(y, by_hand(params, np.asarray(x.reshape(-1, D)), sublayer).reshape(y.shape)) < 1e-12


def test_ragged_is_dense_in_values_and_gradients(x64):
    sublayer = replace(DEEPSEEK, inner_norm=sj.DynamicTanh())
    params, x = parameters(sublayer), normal(N, D, key=1)

    @jax.jit
    def both(params, x):
        def loss(params, x, dispatch):
            y, out = replace(sublayer, dispatch=dispatch).apply(params, x, sj.SideInputs())
            return jnp.sum(jnp.sin(y)) + sum(out.loss.values()), y

        return [jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x, way) for way in ("ragged", "dense")]

    ragged, dense = both(params, x)
    assert largest_difference(ragged, dense) < 1e-12
    bias = dense[1][0].pop("bias")
    assert np.abs(bias).max() == 0 and all(np.abs(g).max() > 0 for g in jax.tree.leaves(dense[1][0]))


@pytest.mark.thorough
def test_ragged_under_vmap_and_in_low_precision(x64):
    trees = [perturbed(parameters(SUB), key=k) for k in (1, 2)]
    params, x = jax.tree.map(lambda *a: jnp.stack(a), *trees), normal(2, N, D, key=1)
    sublayer = replace(SUB, dispatch="ragged")
    lanes = jax.vmap(lambda p, x: sublayer.apply(p, x, sj.SideInputs())[0])(params, x)
    assert largest_difference(lanes[1], sublayer.apply(trees[1], x[1], sj.SideInputs())[0]) < 1e-12
    y, _ = sublayer.apply(trees[0], x[0].astype(jnp.bfloat16), sj.SideInputs())
    assert y.dtype == jnp.bfloat16 and np.isfinite(np.asarray(y, np.float32)).all()


def test_bias_chooses_but_does_not_weigh(x64):
    logits = normal(N, E, key=1)
    weights, chosen, _ = moe.route(logits, jnp.eye(E)[3] * 100, top_k=2, normalised=False)
    assert (chosen == 3).any(-1).all()
    scores = jax.nn.softmax(logits, -1)
    assert largest_difference(weights, jnp.take_along_axis(scores, chosen, -1)) < 1e-15


def test_shared_expert_is_added(x64):
    shared = sj.FeedForward(d_hidden=3, gated=True)
    sublayer = replace(SUB, shared_expert=shared)
    params, x = parameters(sublayer), normal(N, D, key=1)
    routed = {name: value for name, value in params.items() if name != "shared"}
    y = SUB.apply(routed, x, sj.SideInputs())[0] + shared.apply(params["shared"], x, sj.SideInputs())[0]
    assert largest_difference(sublayer.apply(params, x, sj.SideInputs())[0], y) < 1e-15


def test_dropout_is_of_the_whole_output_and_the_shared_expert_has_a_mask_of_its_own():
    shared = sj.FeedForward(d_hidden=3)
    params, x = parameters(replace(SUB, shared_expert=shared), jnp.float32), normal(200, D, key=1, dtype=jnp.float32)
    alone, key = {**params, "down": jnp.zeros_like(params["down"])}, jax.random.key(2)

    def zeros(params, outer, inner):
        sublayer = replace(SUB, dropout=outer, shared_expert=replace(shared, dropout=inner))
        return float((sublayer.apply(params, x, sj.SideInputs(key=key))[0] == 0).mean())

    assert abs(zeros(params, 0.5, 0.0) - 0.5) < 0.05
    assert abs(zeros(alone, 0.5, 0.5) - 0.75) < 0.05


@pytest.mark.thorough
def test_losses(x64):
    """1 for a uniform router, E for one that sends everything to one expert; padding does not count."""
    even = jnp.full((N, E), 1 / E)
    counted = jnp.ones(N, bool)
    hits = moe.expert_hits(jnp.arange(2 * E).reshape(E, 2) % E, jnp.ones(E, bool), E)
    np.testing.assert_array_equal(hits, 2)
    np.testing.assert_allclose(moe.balance_loss(hits / 12, even, counted), 1)
    one = jnp.zeros((N, E)).at[:, 0].set(1)
    np.testing.assert_allclose(moe.balance_loss(jnp.eye(E)[0], one, counted), E)
    logits = normal(N, E, key=1)
    half = jnp.arange(N) < N // 2
    square = np.log(np.exp(np.asarray(logits)).sum(-1)) ** 2
    np.testing.assert_allclose(moe.z_loss(logits, half), square[: N // 2].mean())

    params, x = parameters(SUB), normal(2, N, D, key=1)
    where = {"index": jnp.where(jnp.arange(N) < 4, -1, jnp.arange(N) - 4)[None]}
    padded = SUB.apply(params, x, sj.SideInputs(position=where))[1]
    cut = SUB.apply(params, x[:, 4:], sj.SideInputs())[1]
    assert set(padded.loss) == {"balance", "router_z"}
    assert (
        largest_difference((padded.loss, padded.intermediates["load"]), (cut.loss, cut.intermediates["load"])) < 1e-14
    )
    assert not replace(SUB, balance_loss=0.0, z_loss=0.0).apply(params, x, sj.SideInputs())[1].loss


def test_bias_balances_without_a_loss():
    """Skewed logits; after a few hundred steps of the bias alone every expert has its share."""
    sublayer = replace(DEEPSEEK, n_groups=1, top_groups=1, bias_rate=0.01, balance_loss=0.0, z_loss=0.0)
    params = parameters(sublayer, jnp.float32)
    x = normal(256, D, key=1, dtype=jnp.float32) + 1.0

    def step(bias, _):
        out = sublayer.apply({**params, "bias": bias}, x, sj.SideInputs())[1]
        return out.state["statistic"]["bias"], out.intermediates["load"]

    _, load = jax.jit(lambda bias: jax.lax.scan(step, bias, None, 300))(jnp.zeros(E))
    assert load[0].max() > 1.5 / E
    np.testing.assert_allclose(load[-50:].mean(0), 1 / E, atol=0.02)


def test_an_expert_with_its_exact_share_stays_where_it_is():
    """5 of 20 choices each; compiled, 5 / 20 need not be 1 / 4."""
    sublayer = replace(SUB, n_experts=4, bias_rate=0.1)
    params = {**parameters(sublayer, jnp.float32), "router": jnp.eye(D, 4), "bias": jnp.zeros(4)}
    pairs = np.array([(0, 1), (1, 2), (2, 3), (3, 0)] * 2 + [(0, 1), (2, 3)])
    x = 3 * jax.nn.one_hot(pairs[:, 0], D) + 2 * jax.nn.one_hot(pairs[:, 1], D)
    aux = jax.jit(lambda x: sublayer.apply(params, x, sj.SideInputs())[1])(x)
    np.testing.assert_array_equal(aux.intermediates["load"], 1 / 4)
    np.testing.assert_array_equal(aux.state["statistic"]["bias"], 0)


def test_dense_layers_first_and_the_probes():
    attention = sj.Attention(n_heads=2)
    dense = sj.Layer(sublayers=(attention, sj.FeedForward(d_hidden=12)))
    routed = sj.Layer(sublayers=(attention, SUB))
    stack = sj.Stack.of(dense, routed, routed, depth=3, d_model=D, recipe=sj.recipe.PreNorm())
    assert [segment.n for segment in stack.segments] == [1, 2]
    params = stack.init(jax.random.key(0))

    def measure(trace):
        return {**sj.probe.standard(trace), **sj.probe.expert_load(trace)}

    _, result = jax.jit(lambda params, x: stack.apply(params, x, measure=measure))(params, normal(2, N, D, key=1))
    load, seen = result.measure["expert_load/experts"], result.measure
    assert load.shape == (3, E) and np.isnan(load[0]).all()
    np.testing.assert_allclose(load[1:].sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(seen["max_load/experts"][1:], E * load[1:].max(-1), rtol=1e-6)
    entropy = -(load[1:] * np.log(np.maximum(load[1:], 1e-30))).sum(-1)
    np.testing.assert_allclose(seen["load_entropy/experts"][1:], entropy, rtol=1e-5)
    assert (seen["router_entropy/experts"][1:] < np.log(E)).all()
    assert set(result.loss) == {"balance", "router_z"}


def test_statistics_are_not_counted_or_moved():
    declaration = sj.parameter.declare(DEEPSEEK.spec(D))
    assert declaration["bias"].spec.role == "statistic"
    assert sj.parameter.count(declaration) == D * E + 3 * E * D * 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"top_k": 7}, "top_k must be 1 to 6"),
        ({"n_groups": 4}, "n_groups must divide"),
        ({"n_groups": 6}, "groups of two or more"),
        ({"n_groups": 3, "top_groups": 1, "top_k": 3}, "top_k must be 1 to 2"),
        ({"top_groups": 2}, "top_groups must be 1 to"),
        ({"top_k": 1}, "single expert"),
        ({"score": "relu"}, "score must be"),
        ({"dispatch": "sparse"}, "dispatch must be"),
    ],
)
def test_says_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(SUB, **wrong)


@pytest.mark.parity
def test_against_deepseek(x64):
    torch = pytest.importorskip("torch")
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as theirs
    from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config

    config = DeepseekV3Config(
        hidden_size=D,
        moe_intermediate_size=5,
        n_routed_experts=E,
        num_local_experts=E,
        n_shared_experts=2,
        num_experts_per_tok=2,
        n_group=3,
        topk_group=2,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        experts_implementation="eager",
    )
    experts = theirs.DeepseekV3MoE(config).double()
    torch.manual_seed(0)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.normal_(experts.gate.e_score_correction_bias, std=0.1)
    x = normal(2, N, D, key=1)
    with torch.no_grad():
        wanted = experts(torch.tensor(np.asarray(x)))
    w = {name: jnp.asarray(value.detach().numpy()) for name, value in experts.state_dict().items()}
    gate, up = jnp.split(w["experts.gate_up_proj"].swapaxes(-1, -2), 2, -1)
    weights = {
        "router": w["gate.weight"].T,
        "bias": w["gate.e_score_correction_bias"],
        "gate": gate,
        "up": up,
        "down": w["experts.down_proj"].swapaxes(-1, -2),
        **{f"shared/{name}": w[f"shared_experts.{name}_proj.weight"].T for name in ("gate", "up", "down")},
    }
    sublayer = replace(DEEPSEEK, shared_expert=sj.FeedForward(d_hidden=10, gated=True, activation=sj.feed_forward.silu))
    params = filled(parameters(sublayer), weights)
    # Their router runs in float32.
    assert largest_difference(sublayer.apply(params, x, sj.SideInputs())[0], wanted.numpy()) < 1e-6


@pytest.mark.parity
def test_against_mixtral(x64):
    torch = pytest.importorskip("torch")
    from transformers.models.mixtral import modeling_mixtral as theirs
    from transformers.models.mixtral.configuration_mixtral import MixtralConfig

    config = MixtralConfig(
        hidden_size=D,
        intermediate_size=5,
        num_local_experts=E,
        num_experts_per_tok=2,
        experts_implementation="eager",
    )
    experts = theirs.MixtralSparseMoeBlock(config).double()
    torch.manual_seed(0)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = normal(2, N, D, key=1)
    with torch.no_grad():
        wanted = experts(torch.tensor(np.asarray(x)))
        logits = (experts.gate(torch.tensor(np.asarray(x)).reshape(-1, D))[0],)
        loss = theirs.load_balancing_loss_func(logits, E, 2)
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    w = {name: jnp.asarray(value.detach().numpy()) for name, value in experts.state_dict().items()}
    gate, up = jnp.split(w["experts.gate_up_proj"].swapaxes(-1, -2), 2, -1)
    down = w["experts.down_proj"].swapaxes(-1, -2)
    params = filled(parameters(SUB), {"router": w["gate.weight"].T, "gate": gate, "up": up, "down": down})
    y, out = SUB.apply(params, x, sj.SideInputs())
    assert largest_difference(y, wanted.numpy()) < 1e-6
    # Theirs counts each of the two choices as one.
    np.testing.assert_allclose(2 * out.loss["balance"] / SUB.balance_loss, loss, rtol=1e-6)
