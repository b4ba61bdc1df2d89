"""Equal to what `transformers` made of the same checkpoints when it was asked, for tests that do without it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stackjax.interop import hf
from stackjax.sublayer import SideInputs
from tests.helpers import daily
from tests.interop.configs import CONFIGS
from tests.interop.recorded import IMAGES, PATH, REAL, SOURCE, TOKENS, fixed_params

RECORDED = json.loads(PATH.read_text())


def where(real):
    return {"index": jnp.asarray(np.where(real, np.cumsum(real, -1) - 1, -1))}


DAILY = (
    *("gpt2", "bert", "llama", "gemma3_text", "marian", "bart", "t5", "mistral", "qwen2_moe", "qwen3_next", "gptj"),
    *("falcon", "bloom", "opt", "xlnet", "mixtral", "gpt_oss", "mpt", "cohere", "glm4_moe", "vit", "deepseek_v3"),
)
"""Kinds that differ in more than a norm or a bias; the others are thorough tests."""


@pytest.mark.parametrize("kind", daily(CONFIGS, *DAILY))
def test_logits(kind):
    model, params = hf.describe(CONFIGS[kind]), fixed_params(kind)
    if "encoder" in params:
        logits, _ = jax.jit(model.apply)(
            params, SOURCE, TOKENS, SideInputs(position=where(REAL), memory_position=where(SOURCE > 0))
        )
    elif kind == "vit":
        logits, _ = jax.jit(model.apply)(params, hf.patches(jnp.asarray(IMAGES), 3))
    else:
        logits, _ = jax.jit(model.apply)(params, TOKENS, SideInputs(position=where(REAL)))
    expected, real = np.array(RECORDED[kind]), np.ones(logits.shape[:2], bool) if kind == "vit" else REAL
    assert np.ptp(expected, -1).min() > 0.01
    np.testing.assert_allclose(np.asarray(logits)[real], expected, atol=2e-5 * np.abs(expected).max(), rtol=0)
