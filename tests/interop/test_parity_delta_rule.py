"""The gated delta rule equal to the public implementation, in values, gradients and decoding: `pytest -m parity`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.testing import largest_difference

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
qwen = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
pytestmark = pytest.mark.parity

D, G, EACH, K, V, T = 24, 2, 3, 6, 5, 70
SUB = sj.GatedDeltaNet(n_heads=G * EACH, n_key_heads=G, d_head=K, d_value=V)


@pytest.fixture
def module():
    """The public module with random weights, all of them away from their initial values."""
    torch.manual_seed(0)
    config = transformers.Qwen3NextConfig(
        hidden_size=D, linear_num_value_heads=G * EACH, linear_num_key_heads=G, linear_key_head_dim=K,
        linear_value_head_dim=V, linear_conv_kernel_dim=4, num_hidden_layers=1, layer_types=["linear_attention"],
    )  # fmt: skip
    module = qwen.Qwen3NextGatedDeltaNet(config, 0)
    with torch.no_grad():
        for weight in module.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return module, config


def converted(module, read):
    """Its weights, or what `read` reads beside each, under the names of the sublayer's parameters."""
    stored = {name: read(weight) for name, weight in module.named_parameters()}

    def split(name, *widths):
        """Columns of a projection, which stand head by head."""
        by_head = stored[name].reshape(G, sum(widths), D)
        return [part.reshape(-1, D).T for part in np.split(by_head, np.cumsum(widths)[:-1], 1)]

    query, key, value, gate = split("in_proj_qkvz.weight", K, K, EACH * V, EACH * V)
    beta, decay = split("in_proj_ba.weight", EACH, EACH)
    params = {"query": query, "key": key, "value": value, "gate": gate, "beta": beta, "decay": decay}
    return params | {
        "convolution": stored["conv1d.weight"][:, 0].T,
        "log_rate": stored["A_log"],
        "time_step": stored["dt_bias"],
        "norm": {"scale": stored["norm.weight"]},
        "out": stored["out_proj.weight"].T,
    }


def test_values_and_gradients_are_those_of_qwen3_next(module):
    public, _ = module
    x, real = torch.randn(3, T, D), torch.ones(3, T, dtype=torch.bool)
    real[1, :9], real[2, 40:] = False, False
    wanted = public(x, attention_mask=real)
    torch.sin(wanted[real]).sum().backward()
    params = converted(public, lambda weight: weight.detach().numpy())
    shapes = jax.tree.map(lambda spec: spec.shape, SUB.spec(D), is_leaf=sj.parameter.is_spec)
    assert jax.tree.map(jnp.shape, params) == shapes
    index = np.where(real, np.cumsum(real, 1) - 1, -1)

    def loss(params):
        y, _ = SUB.apply(params, x.numpy(), sj.SideInputs(position={"index": jnp.asarray(index)}))
        return jnp.sum(jnp.where(real.numpy()[..., None], jnp.sin(y), 0)), y

    slopes, y = jax.grad(loss, has_aux=True)(params)
    assert largest_difference(y[real.numpy()], wanted[real].detach().numpy()) < 1e-5
    assert largest_difference(slopes, converted(public, lambda weight: weight.grad.numpy())) < 1e-4


def test_decoding_is_that_of_qwen3_next(module):
    public, config = module
    x, n_read = torch.randn(2, 12, D), 7
    public.eval()
    held = transformers.DynamicCache(config=config)
    with torch.no_grad():
        wanted = [public(part, cache=held) for part in (x[:, :n_read], *x[:, n_read:].split(1, 1))]
    params = converted(public, lambda weight: weight.detach().numpy())
    cache, rows = SUB.cache(2, 12, D, jnp.float32), []
    for begin, end in [(0, n_read), *((t, t + 1) for t in range(n_read, 12))]:
        side_inputs = sj.SideInputs(position={"index": jnp.arange(begin, end)[None]}, cache=cache)
        y, aux = SUB.apply(params, x[:, begin:end].numpy(), side_inputs)
        cache = aux.state["cache"]
        rows.append(y)
    assert largest_difference(jnp.concatenate(rows, 1), torch.cat(wanted, 1).numpy()) < 1e-5
    state = cache["state"].reshape(2, G * EACH, K, V)
    assert largest_difference(state, held.layers[0].recurrent_states[0].numpy()) < 1e-5
