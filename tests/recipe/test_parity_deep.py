"""Whole stacks of public models that are recipes of ours, with their weights: equal outputs and input gradients.

Run with `pytest -m parity`; needs the extra `oracle`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import recipe
from stackjax.recipe.hyper_connections import HyperConnected
from stackjax.recipe.manifold_hyper_connections import ManifoldHyperConnected
from tests.helpers import filled

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("x64")]

D, H, F, T, DEPTH = 16, 2, 24, 6, 3
SINGLE = 5e-6
"""Of the largest entry; where the package computes its norms or its softmax in float32 whatever it is given."""


def drawn(module):
    """In evaluation mode and float64, with every parameter far from its init."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return module.double().eval()


def check(stack, layers, leave, theirs, *, tolerance=1e-12):
    """Our stack with their weights, {path: tensor} of each layer and of the end, on the same input."""

    def array(value):
        return jnp.asarray(value.detach().numpy())

    params = stack.init(jax.random.key(0), jnp.float64)
    stacked = {name: jnp.stack([array(layer[name]) for layer in layers]) for name in layers[0]}
    params["segments"]["0"]["0"] = filled(params["segments"]["0"]["0"], stacked)
    params["leave"]["inner"] = filled(params["leave"]["inner"], {name: array(value) for name, value in leave.items()})
    x, weight = np.random.default_rng(0).normal(size=(2, 2, T, D))
    side_inputs = torch.from_numpy(x).requires_grad_()
    out = theirs(side_inputs)
    (out * torch.from_numpy(weight)).sum().backward()

    @jax.jit
    def ours(x):
        y, vjp = jax.vjp(lambda x: stack.apply(params, x)[0], x)
        return y, *vjp(jnp.asarray(weight))

    for found, expected in zip(ours(jnp.asarray(x)), (out.detach().numpy(), side_inputs.grad.numpy()), strict=True):
        assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


class Branch(torch.nn.Module):
    """A small feed-forward network, in the place of attention too, where it must return a pair."""

    def __init__(self, pair=False):
        super().__init__()
        self.up, self.down = torch.nn.Linear(D, F, bias=False), torch.nn.Linear(F, D, bias=False)
        self.pair = pair

    def forward(self, x, *_, **__):
        y = self.down(torch.nn.functional.gelu(self.up(x)))
        return (y, None) if self.pair else y

    def weights(self, name):
        return {f"{name}/up": self.up.weight.T, f"{name}/down": self.down.weight.T}


BRANCHES = tuple(sj.FeedForward(name=name, d_hidden=F, activation=sj.feed_forward.gelu) for name in ("one", "two"))


def stack_of(rule, *sublayers):
    return sj.Stack.of(sj.Layer(sublayers=sublayers or BRANCHES), depth=DEPTH, d_model=D, recipe=rule)


def test_manifold_hyper_connections_in_deepseek_v4():
    """The whole model from its embeddings on, all but its attention and its experts."""
    deepseek = pytest.importorskip("transformers.models.deepseek_v4.modeling_deepseek_v4")
    config = deepseek.DeepseekV4Config(
        vocab_size=7,
        hidden_size=D,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        head_dim=8,
        q_lora_rank=8,
        o_groups=2,
        o_lora_rank=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        index_n_heads=2,
        index_head_dim=8,
        layer_types=["sliding_attention"] * DEPTH,
        hc_mult=3,
        hc_sinkhorn_iters=7,
        hc_eps=1e-3,
    )
    model = deepseek.DeepseekV4Model(config)
    for layer in model.layers:
        layer.self_attn, layer.mlp = Branch(pair=True), Branch()
    drawn(model)

    def mixing(name, module):
        return {f"{name}/weights": module.fn.T, f"{name}/bias": module.base, f"{name}/gate": module.scale}

    layers = [
        {
            **layer.self_attn.weights("one"),
            **layer.mlp.weights("two"),
            **mixing("residual/one", layer.attn_hc),
            **mixing("residual/two", layer.ffn_hc),
            "residual/one/norm/scale": layer.input_layernorm.weight,
            "residual/two/norm/scale": layer.post_attention_layernorm.weight,
        }
        for layer in model.layers
    ]
    head = model.hc_head
    leave = {"norm/scale": model.norm.weight, "weights": head.hc_fn.T, "bias": head.hc_base, "gate": head.hc_scale[0]}
    rule = recipe.ManifoldHyperConnections(residual=ManifoldHyperConnected(n=3, steps=7, eps=1e-3))
    check(stack_of(rule), layers, leave, lambda x: model(inputs_embeds=x).last_hidden_state, tolerance=SINGLE)


def test_hyper_connections_in_their_package():
    package = pytest.importorskip("hyper_connections.hyper_connections")
    n, norm = 3, sj.RMSNorm(eps=0.0)
    expand, reduce = package.get_expand_reduce_stream_functions(n)
    modules = torch.nn.ModuleList(
        package.HyperConnections(
            n, dim=D, layer_index=i, branch=torch.nn.Sequential(torch.nn.RMSNorm(D, eps=0.0), Branch())
        )
        for i in range(2 * DEPTH)
    )
    final = drawn(torch.nn.RMSNorm(D, eps=0.0))
    drawn(modules)

    def weights(name, module):
        around = {
            "norm/scale": module.branch[0].weight,
            "read": module.static_alpha[:, 0],
            "mix": module.static_alpha[:, 1:],
            "write": module.static_beta,
            "dynamic/norm/scale": module.norm.gamma + 1,
            "dynamic/read": module.dynamic_alpha_fn[:, 0],
            "dynamic/mix": module.dynamic_alpha_fn[:, 1:],
            "dynamic/write": module.dynamic_beta_fn,
            "dynamic/read_scale": module.dynamic_alpha_scale,
            "dynamic/write_scale": module.dynamic_beta_scale,
        }
        return module.branch[1].weights(name) | {f"residual/{name}/{key}": value for key, value in around.items()}

    layers = [weights("one", modules[2 * i]) | weights("two", modules[2 * i + 1]) for i in range(DEPTH)]

    def theirs(x):
        x = expand(x)
        for module in modules:
            x = module(x)
        return final(reduce(x))

    rule = recipe.HyperConnections(residual=HyperConnected(n=n, norm=norm))
    check(stack_of(rule), layers, {"norm/scale": final.weight}, theirs)


def test_ngpt_in_its_package(monkeypatch):
    package = pytest.importorskip("nGPT_pytorch.nGPT")
    for kind in (package.Attention, package.FeedForward, package.NormLinear, package.Scale):
        monkeypatch.setattr(kind, "__hash__", object.__hash__)  # torch asks for it when it lists parameters
    pairs = torch.nn.ModuleList(
        torch.nn.ModuleList(
            package.Residual(part, D, 1 / DEPTH)
            for part in (package.Attention(D, dim_head=D // H, heads=H), package.FeedForward(D))
        )
        for _ in range(DEPTH)
    )
    drawn(pairs)
    for name, parameter in pairs.named_parameters():
        if name.endswith(".scale"):
            parameter.data = parameter.data.abs() * D**-0.5

    def layer(attention, forward):
        a, f = attention.fn, forward.fn
        return {
            "attention/query": a.to_q.weight.T,
            "attention/key": a.to_k.weight.T,
            "attention/value": a.to_v.weight.T,
            "attention/out": a.to_out.weight.T,
            "attention/query_key_scale": (a.qk_scale() / D).sqrt().reshape(H, -1),
            "feed_forward/up": f.to_hidden.weight.T,
            "feed_forward/gate": f.to_gate.weight.T,
            "feed_forward/down": f.to_out.weight.T,
            "feed_forward/up_scale": f.hidden_scale(),
            "feed_forward/gate_scale": f.gate_scale(),
            "residual/attention/step": attention.branch_scale() / (0.05 * D**0.5),
            "residual/feed_forward/step": forward.branch_scale() / (0.05 * D**0.5),
        }

    def theirs(x):
        x = package.l2norm(x)
        for attention, forward in pairs:
            x = forward(attention(x))
        return x

    hidden = pairs[0][1].fn.dim_inner
    forward = sj.FeedForward(d_hidden=hidden, gated=True, activation=sj.feed_forward.silu)
    stack, layers = stack_of(recipe.NGPT(), sj.Attention(n_heads=H), forward), [layer(*pair) for pair in pairs]
    # Our norm adds 1e-12 to the square of a length, which for a branch is about 1e-3.
    check(stack, layers, {}, theirs, tolerance=1e-8)


def test_attention_residuals_in_their_package():
    """All earlier outputs, up to the package's end, which sums where the paper attends: our end looks at all alike."""
    package = pytest.importorskip("attn_res.main")
    config = package.TransformerConfig(
        d_model=D,
        n_layers=2 * DEPTH,
        n_heads=H,
        n_kv_heads=1,
        vocab_size=7,
        max_seq_len=T,
        attn_res_mode=package.AttnResMode.FULL,
    )
    model = drawn(package.AttnResTransformer(config))

    def around(name, module):
        return {
            f"residual/{name}/norm/scale": module.norm.weight,
            f"residual/{name}/key_norm/scale": torch.ones(D),
            f"residual/{name}/query": module.attn_res.pseudo_query,
        }

    def layer(attention, forward):
        a, f = attention.fn, forward.fn
        return {
            **{f"attention/{ours}": getattr(a, f"w_{ours[0]}").weight.T for ours in ("query", "key", "value", "out")},
            "feed_forward/gate": f.w_gate.weight.T,
            "feed_forward/up": f.w_up.weight.T,
            "feed_forward/down": f.w_down.weight.T,
            **around("attention", attention),
            **around("feed_forward", forward),
        }

    layers = [layer(*model.layers[2 * i : 2 * i + 2]) for i in range(DEPTH)]
    leave = {"norm/scale": model.out_norm.weight, "key_norm/scale": torch.ones(D), "query": torch.zeros(D)}
    mask = model._build_causal_mask(T, torch.device("cpu"))

    def theirs(x):
        return model.out_norm(model._forward_full_attnres(x, torch.ones_like(model.rope_freqs), mask))

    sublayers = (
        sj.Attention(n_heads=H, n_kv_heads=1),
        sj.FeedForward(d_hidden=config.d_ff, gated=True, activation=sj.feed_forward.silu),
    )
    check(stack_of(recipe.AttentionResiduals(), *sublayers), layers, leave, theirs, tolerance=SINGLE)


def test_value_residual_in_x_transformers():
    public = pytest.importorskip("x_transformers")
    options = {"add_value_residual": True, "learned_value_residual_mix": False}
    module = drawn(public.Decoder(dim=D, depth=DEPTH, heads=H, attn_dim_head=D // H, ff_mult=2, **options))

    def norm(name, theirs):
        return {f"{name}/scale": theirs.gamma + float(theirs.unit_offset), f"{name}/bias": torch.zeros(D)}

    def layer(attention, forward):
        (norm_a, *_), a, _ = attention
        (norm_f, *_), f, _ = forward
        return {
            "attention/query": a.to_q.weight.T,
            "attention/key": a.to_k.weight.T,
            "attention/value": a.to_v.weight.T,
            "attention/out": a.to_out.weight.T,
            "feed_forward/up": f.ff[0][0].weight.T,
            "feed_forward/up_bias": f.ff[0][0].bias,
            "feed_forward/down": f.ff[2].weight.T,
            "feed_forward/down_bias": f.ff[2].bias,
            **norm("residual/attention/norm", norm_a),
            **norm("residual/feed_forward/norm", norm_f),
        }

    layers = [layer(*module.layers[2 * i : 2 * i + 2]) for i in range(DEPTH)]
    sublayers = (
        sj.Attention(n_heads=H),
        sj.FeedForward(d_hidden=2 * D, activation=sj.feed_forward.gelu, bias=True),
    )
    stack, leave = stack_of(recipe.ValueResidual(), *sublayers), norm("norm", module.final_norm)
    check(stack, layers, leave, lambda x: module(x), tolerance=SINGLE)
