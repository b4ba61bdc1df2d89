"""Low-rank adaptation (LoRA): a matrix W acts as W + (alpha / rank) A B, and only A and B are trained.

    adapted = sj.adapt.low_rank(model, rank=8, roles=("query", "value"))
    params = sj.adapt.start(adapted, params, key)       # A is drawn, B is zero: the same function, to the bit
    tx = optax.selective_transform(sj.optim.adamw(adapted, learning_rate=1e-3), freeze_mask=sj.adapt.frozen(adapted))
    sj.adapt.save("folder", adapted, params)            # the adapter alone, as PEFT names it
    model, params = sj.adapt.merge(adapted, params)     # W + (alpha / rank) A B in place of W

An adapted model is a model like any other: it trains, decodes, shards, grows and is saved as every model does. The sum
is made inside the scan, one layer at a time; each stacked matrix has one stacked pair of factors.

With `magnitude=True` the norm of each column of a matrix is trained apart from its direction (DoRA).

Source: Hu et al. 2021, section 4.1, arXiv:2106.09685; DoRA: Liu et al. 2024, eq. (5) and (11), arXiv:2402.09353.

Train factors of rank 2 alone, and fold them in:

    >>> import jax, jax.numpy as jnp, optax, stackjax as sj
    >>> model = sj.decoder(vocab=16, d_model=16, depth=2, n_heads=2)
    >>> params, tokens = jax.jit(model.init)(jax.random.key(0)), jnp.arange(8)[None]
    >>> adapted = sj.adapt.low_rank(model, rank=2)
    >>> small = sj.adapt.start(adapted, params, jax.random.key(1))
    >>> adamw = sj.optim.adamw(adapted, learning_rate=0.1)
    >>> optimizer = optax.selective_transform(adamw, freeze_mask=sj.adapt.frozen(adapted))
    >>> @jax.jit
    ... def step(small, state):
    ...     gradient = jax.grad(lambda p: sj.loss.next_token(adapted.apply(p, tokens)[0], tokens))(small)
    ...     updates, state = optimizer.update(gradient, state, small)
    ...     return optax.apply_updates(small, updates), state
    >>> state = jax.jit(optimizer.init)(small)
    >>> for _ in range(2):
    ...     small, state = step(small, state)
    >>> merged, whole = sj.adapt.merge(adapted, small)
    >>> logits, same = jax.jit(adapted.apply)(small, tokens)[0], jax.jit(merged.apply)(whole, tokens)[0]
    >>> bool(jnp.allclose(logits, same, atol=1e-4))
    True
    >>> merged == model
    True

Without factors: a smaller learning rate for lower layers:

    >>> import jax, stackjax as sj
    >>> model = sj.decoder(vocab=16, d_model=16, depth=3, n_heads=2)
    >>> rates = sj.optim.layer_decay(model, 0.5)
    >>> optimizer = sj.optim.with_rates(model, sj.optim.adamw(model, learning_rate=1e-3), rates)
    >>> rates["stack"]["segments"]["0"]["0"]["feed_forward"]["up"].ravel().tolist()
    [0.125, 0.25, 0.5]

Layers, roles or paths that do not move, since their rate is 0:

    >>> rates = sj.optim.factors(model, layers=[0, 0, 1], roles={"embed": 0}, paths={"*/attention/*": 0})
    >>> optimizer = sj.optim.with_rates(model, sj.optim.adamw(model, learning_rate=1e-3), rates)
    >>> params = jax.jit(model.init)(jax.random.key(0))
    >>> updates, _ = jax.jit(optimizer.update)(params, jax.jit(optimizer.init)(params), params)
    >>> layers = updates["stack"]["segments"]["0"]["0"]
    >>> [float(abs(layers["feed_forward"]["up"][layer]).max()) > 0 for layer in range(3)]
    [False, False, True]
    >>> float(abs(layers["attention"]["query"]).max()), float(abs(updates["embedding"]["token"]).max())
    (0.0, 0.0)
"""

from stackjax.adapt.factors import LowRank, frozen, low_rank, merge, start
from stackjax.adapt.peft import load, save

__all__ = ["LowRank", "frozen", "load", "low_rank", "merge", "save", "start"]
