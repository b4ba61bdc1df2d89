"""Layers of public models that are recipes of ours, with their weights: equal outputs.

Run with `pytest -m parity`; needs torch and transformers, and x-transformers for one of them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import recipe
from stackjax.recipe import residual
from tests.helpers import filled

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

D, H, F, T = 16, 2, 24, 6
BIASES = ("query", "key", "value", "out")


def shaken(module):
    """In evaluation mode, with every parameter moved away from its init."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def projection(name, module, transform=lambda w: w.T):
    """{name, name_bias} of a torch.nn.Linear."""
    found = {name: transform(module.weight)}
    return found if module.bias is None else {**found, f"{name}_bias": module.bias}


def norm(name, module, offset=0.0):
    """{name/scale, name/bias} of a torch norm."""
    found = {f"{name}/scale": module.weight + offset}
    return found if getattr(module, "bias", None) is None else {**found, f"{name}/bias": module.bias}


def below(prefix, *groups):
    return {f"{prefix}/{name}": value for group in groups for name, value in group.items()}


def check(sublayers, rule, weights, theirs, *, tolerance=2e-6):
    """One layer of ours with their weights, on the same input."""
    stack = sj.Stack.of(sj.Layer(sublayers=sublayers), depth=1, d_model=D, recipe=rule)
    params = stack.init(jax.random.key(0))
    stacked = {name: jnp.asarray(value.detach().numpy())[None] for name, value in weights.items()}
    params["segments"]["0"]["0"] = filled(params["segments"]["0"]["0"], stacked)
    x = np.random.default_rng(0).normal(size=(2, T, D)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    found = np.asarray(stack.apply(params, jnp.asarray(x))[0])
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


def still(dtype=torch.float32):
    """Rotary tables that do not rotate, and a causal mask."""
    shape = (1, T, D // H)
    mask = torch.full((T, T), float("-inf")).triu(1)[None, None]
    return (torch.ones(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)), mask


def llama_like(layer, mlp, *, query_norm=()):
    """Attention and gated feed-forward in the naming of the Llama family."""
    attention = layer.self_attn
    return {
        **below(
            "attention",
            projection("query", attention.q_proj),
            projection("key", attention.k_proj),
            projection("value", attention.v_proj),
            projection("out", attention.o_proj),
            *query_norm,
        ),
        **below(
            "feed_forward",
            projection("gate", mlp.gate_proj),
            projection("up", mlp.up_proj),
            projection("down", mlp.down_proj),
        ),
    }


@pytest.mark.parametrize("norm_first", [False, True])
def test_post_and_pre_norm_in_torch(norm_first):
    layer = shaken(torch.nn.TransformerEncoderLayer(D, H, F, dropout=0.0, batch_first=True, norm_first=norm_first))
    packed, bias = layer.self_attn.in_proj_weight.chunk(3), layer.self_attn.in_proj_bias.chunk(3)
    names = ("query", "key", "value")
    weights = {
        **below("attention", dict(zip(names, (w.T for w in packed), strict=True))),
        **below("attention", dict(zip((f"{n}_bias" for n in names), bias, strict=True))),
        **below("attention", projection("out", layer.self_attn.out_proj)),
        **below("feed_forward", projection("up", layer.linear1), projection("down", layer.linear2)),
        **below("residual/attention", norm("norm", layer.norm1)),
        **below("residual/feed_forward", norm("norm", layer.norm2)),
    }
    sublayers = (
        sj.Attention(n_heads=H, causal=False, bias=BIASES),
        sj.FeedForward(d_hidden=F, activation=sj.feed_forward.relu, bias=True),
    )
    rule = recipe.PreNorm(residual=residual.Pre(final=False)) if norm_first else recipe.PostNorm()
    check(sublayers, rule, weights, lambda x: layer(x))


def test_sandwich_in_gemma_2():
    gemma = pytest.importorskip("transformers.models.gemma2.modeling_gemma2")
    config = gemma.Gemma2Config(
        hidden_size=D,
        num_attention_heads=H,
        num_key_value_heads=H,
        head_dim=D // H,
        intermediate_size=F,
        query_pre_attn_scalar=5,
        num_hidden_layers=1,
        attn_logit_softcapping=2.0,
        attn_implementation="eager",
    )
    layer = shaken(gemma.Gemma2DecoderLayer(config, 0))
    weights = {
        **llama_like(layer, layer.mlp),
        **below(
            "residual/attention",
            norm("norm_in", layer.input_layernorm, 1.0),
            norm("norm_out", layer.post_attention_layernorm, 1.0),
        ),
        **below(
            "residual/feed_forward",
            norm("norm_in", layer.pre_feedforward_layernorm, 1.0),
            norm("norm_out", layer.post_feedforward_layernorm, 1.0),
        ),
    }
    sublayers = (
        sj.Attention(n_heads=H, scale=5**-0.5, soft_cap=2.0),
        sj.FeedForward(d_hidden=F, gated=True, activation=sj.feed_forward.gelu_tanh),
    )
    rule = recipe.SandwichNorm(residual=residual.Sandwich(norm=sj.RMSNorm(), final=False))
    rotary, mask = still()
    check(sublayers, rule, weights, lambda x: layer(x, position_embeddings=rotary, attention_mask=mask))


def test_res_post_norm_in_olmo_2():
    """One head, so that OLMo 2's norm of all queries together is that of each head."""
    olmo = pytest.importorskip("transformers.models.olmo2.modeling_olmo2")
    config = olmo.Olmo2Config(
        hidden_size=D,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=F,
        num_hidden_layers=1,
        rms_norm_eps=1e-6,
        attn_implementation="eager",
    )
    layer = shaken(olmo.Olmo2DecoderLayer(config, 0))
    query_norm = norm("query_norm", layer.self_attn.q_norm), norm("key_norm", layer.self_attn.k_norm)
    weights = {
        **llama_like(layer, layer.mlp, query_norm=query_norm),
        **below("residual/attention", norm("norm", layer.post_attention_layernorm)),
        **below("residual/feed_forward", norm("norm", layer.post_feedforward_layernorm)),
    }
    sublayers = (
        sj.Attention(n_heads=1, qk_norm=sj.RMSNorm()),
        sj.FeedForward(d_hidden=F, gated=True, activation=sj.feed_forward.silu),
    )
    rule = recipe.ResPostNorm(residual=residual.BranchNormed(norm=sj.RMSNorm(), final=False))
    (cos, sin), mask = still()
    rotary = cos.repeat(1, 1, H), sin.repeat(1, 1, H)
    check(sublayers, rule, weights, lambda x: layer(x, position_embeddings=rotary, attention_mask=mask))


def test_sub_norm_in_kosmos_2():
    kosmos = pytest.importorskip("transformers.models.kosmos2.modeling_kosmos2")
    config = kosmos.Kosmos2TextConfig(
        embed_dim=D,
        attention_heads=H,
        ffn_dim=F,
        layers=1,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        activation_function="gelu",
        attn_implementation="eager",
    )
    layer = shaken(kosmos.Kosmos2TextBlock(config, 0))
    attention = layer.self_attn
    weights = {
        **below(
            "attention",
            projection("query", attention.q_proj),
            projection("key", attention.k_proj),
            projection("value", attention.v_proj),
            projection("out", attention.out_proj),
            norm("inner_norm", attention.inner_attn_ln),
        ),
        **below(
            "feed_forward",
            projection("up", layer.ffn.fc1),
            projection("down", layer.ffn.fc2),
            norm("inner_norm", layer.ffn.ffn_layernorm),
        ),
        **below("residual/attention", norm("norm", layer.self_attn_layer_norm)),
        **below("residual/feed_forward", norm("norm", layer.final_layer_norm)),
    }
    sublayers = (
        sj.Attention(n_heads=H, bias=BIASES),
        sj.FeedForward(d_hidden=F, activation=sj.feed_forward.gelu, bias=True),
    )
    mask = still()[1]
    rule = recipe.SubNorm(residual=residual.Pre(final=False))
    check(sublayers, rule, weights, lambda x: layer(x, attention_mask=mask))


def test_layer_scale_in_dinov2():
    dino = pytest.importorskip("transformers.models.dinov2.modeling_dinov2")
    config = dino.Dinov2Config(hidden_size=D, num_attention_heads=H, mlp_ratio=2, attn_implementation="eager")
    layer = shaken(dino.Dinov2Layer(config))
    attention = layer.attention
    weights = {
        **below(
            "attention",
            projection("query", attention.q_proj),
            projection("key", attention.k_proj),
            projection("value", attention.v_proj),
            projection("out", attention.o_proj),
        ),
        **below("feed_forward", projection("up", layer.mlp.fc1), projection("down", layer.mlp.fc2)),
        **below("residual/attention", norm("norm", layer.norm1), {"gate": layer.layer_scale1.lambda1}),
        **below("residual/feed_forward", norm("norm", layer.norm2), {"gate": layer.layer_scale2.lambda1}),
    }
    sublayers = (
        sj.Attention(n_heads=H, causal=False, bias=BIASES),
        sj.FeedForward(d_hidden=2 * D, activation=sj.feed_forward.gelu, bias=True),
    )
    form = recipe.gate.FeatureGated(norm=sj.LayerNorm(eps=1e-6), final=False)
    check(sublayers, recipe.LayerScale(residual=form), weights, lambda x: layer(x))


def test_branch_multiplier_in_granite():
    granite = pytest.importorskip("transformers.models.granite.modeling_granite")
    config = granite.GraniteConfig(
        hidden_size=D,
        num_attention_heads=H,
        num_key_value_heads=H,
        intermediate_size=F,
        num_hidden_layers=1,
        residual_multiplier=0.22,
        attention_multiplier=0.3,
        attn_implementation="eager",
    )
    layer = shaken(granite.GraniteDecoderLayer(config, 0))
    weights = {
        **llama_like(layer, layer.mlp),
        **below("residual/attention", norm("norm", layer.input_layernorm)),
        **below("residual/feed_forward", norm("norm", layer.post_attention_layernorm)),
    }
    sublayers = (
        sj.Attention(n_heads=H, scale=0.3),
        sj.FeedForward(d_hidden=F, gated=True, activation=sj.feed_forward.silu),
    )
    rule = recipe.Weighted(residual=residual.Pre(norm=sj.RMSNorm(), final=False), beta=0.22)
    rotary, mask = still()
    check(sublayers, rule, weights, lambda x: layer(x, position_embeddings=rotary, attention_mask=mask))


@pytest.mark.parametrize("kind", ["keel", "dyt"])
def test_keel_and_dyt_in_x_transformers(kind):
    public = pytest.importorskip("x_transformers")
    options = (
        {"pre_and_post_norm": True, "scale_residual_constant": 2.0}
        if kind == "keel"
        else {"use_dynamic_tanh": True, "dynamic_tanh_init_alpha": 0.5, "pre_norm_has_final_norm": False}
    )
    layers = shaken(public.Encoder(dim=D, depth=1, heads=H, attn_dim_head=D // H, ff_mult=2, **options))
    (norms_a, attention, _), (norms_f, forward, _) = layers.layers
    weights = {
        **below(
            "attention",
            projection("query", attention.to_q),
            projection("key", attention.to_k),
            projection("value", attention.to_v),
            projection("out", attention.to_out),
        ),
        **below("feed_forward", projection("up", forward.ff[0][0]), projection("down", forward.ff[2])),
    }
    for sublayer, (before, _, after) in (("attention", norms_a), ("feed_forward", norms_f)):
        if kind == "keel":
            for name, module in (("norm_in", before), ("norm_out", after)):
                own = {"scale": module.gamma + float(module.unit_offset), "bias": torch.zeros(D)}
                weights |= below(f"residual/{sublayer}/{name}", own)
        else:
            slope = before.pre_tanh_scale + before.pre_tanh_scale_offset
            own = {"alpha": slope, "scale": before.gamma + before.gamma_offset, "bias": before.beta}
            weights |= below(f"residual/{sublayer}/norm", own)
    sublayers = (
        sj.Attention(n_heads=H, causal=False),
        sj.FeedForward(d_hidden=2 * D, activation=sj.feed_forward.gelu, bias=True),
    )
    form = recipe.dynamic_tanh.ScaledPre(final=False)
    check(sublayers, recipe.Keel() if kind == "keel" else recipe.DyT(residual=form), weights, lambda x: layers(x))
