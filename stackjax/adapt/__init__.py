"""Low-rank adaptation (LoRA): a matrix W acts as W + (alpha / rank) A B, and only A and B are trained.

    adapted = sj.adapt.low_rank(model, rank=8, roles=("query", "value"))
    params = sj.adapt.start(adapted, params, key)       # A is drawn, B is zero: the same function, to the bit
    tx = optax.selective_transform(sj.optim.adamw(adapted, learning_rate=1e-3), freeze_mask=sj.adapt.frozen(adapted))
    sj.adapt.save("folder", adapted, params)            # the adapter alone, as PEFT names it
    model, params = sj.adapt.merge(adapted, params)     # W + (alpha / rank) A B in place of W

An adapted model is a model like any other: it trains, decodes, shards, grows and is saved as every model does. The sum
is made inside the scan, one layer at a time; each stacked matrix has one stacked pair of factors.

Source: Hu et al. 2021, section 4.1, arXiv:2106.09685.
"""

from stackjax.adapt.factors import LowRank, frozen, low_rank, merge, start
from stackjax.adapt.peft import load, save

__all__ = ["LowRank", "frozen", "load", "low_rank", "merge", "save", "start"]
