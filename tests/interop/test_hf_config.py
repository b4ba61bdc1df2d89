"""What a config.json says: every option counts, is without effect for a reason, or is refused."""

import pytest

from stackjax.interop import hf
from stackjax.interop.hf import config as options
from stackjax.position import Rotary, rotary_scaling
from tests.interop.configs import CONFIGS

REFUSED = {
    "no such architecture": ({"model_type": "mamba"}, "model_type='mamba' is not supported; these are: .*gpt2"),
    "another head": (
        {"architectures": ["GPT2ForSequenceClassification"]},
        "GPT2ForSequenceClassification is not supported; .* GPT2LMHeadModel",
    ),
    "unknown option": ({"new_trick": True}, "does not know: new_trick=True"),
    "unsupported value": ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True, which"),
    "unknown activation": ({"activation_function": "mish"}, "activation_function='mish'; supported are relu"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    change, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        hf.describe({**CONFIGS["gpt2"], **change})


def test_a_size_is_never_guessed():
    config = {name: value for name, value in CONFIGS["gpt2"].items() if name != "n_head"}
    with pytest.raises(ValueError, match=r"config\.json lacks the option n_head"):
        hf.describe(config)


OTHERS = {
    "layer_types": ["full_attention"],
    "rope_scaling": {"rope_type": "unheard"},
    "rope_parameters": {"rope_theta": 5.0},
}


def another(name, value):
    """A value of the same kind."""
    if name in OTHERS:
        return OTHERS[name]
    if isinstance(value, bool) or not value:
        return not value
    return "relu" if isinstance(value, str) else 2 * value


WITHOUT_EFFECT = {
    "max_position_embeddings": "rotary and sinusoidal positions have no end",
    "n_ctx": "an older name of n_positions",
    "rope_theta": "rope_parameters stands before it",
    "rope_scaling": "rope_parameters stands before it",
    "initial_context_length": "in rope_parameters too",
    "num_nextn_predict_layers": "modules that are not read",
    "num_mtp_layers": "modules that are not read",
    **dict.fromkeys(["mem_len", "reuse_len", "same_length", "use_mems_eval", "use_mems_train"], "without memory"),
    **dict.fromkeys(["start_n_top", "end_n_top"], "of another head"),
}
WITH_EFFECT = {("bert", "max_position_embeddings"), ("gemma3_text", "rope_theta"), ("gemma3_text", "rope_scaling")}


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_option_matters(kind):
    """Whatever a description reads changes the model or is refused."""
    plain = hf.describe(CONFIGS[kind])
    reader = options.Config(CONFIGS[kind])
    hf.ARCHITECTURES[kind].describe(reader)
    for name, value in reader.read.items():
        if name in WITHOUT_EFFECT and (kind, name) not in WITH_EFFECT:
            continue
        try:
            changed = hf.describe({**CONFIGS[kind], name: another(name, value)}) != plain
        except ValueError:
            changed = True
        assert changed, f"{name}={value!r} is read and does nothing"


ROPES = {
    "default": ({"rope_theta": 5.0}, Rotary(base=5.0)),
    "older": ({"type": "linear", "factor": 2.0}, Rotary(scaling=rotary_scaling.Linear(factor=2.0))),
    "dynamic": (
        {"rope_type": "dynamic", "factor": 2.0},
        Rotary(scaling=rotary_scaling.DynamicNTK(factor=2.0, original_length=32)),
    ),
    "llama3": (
        {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0},
        Rotary(scaling=rotary_scaling.Llama3(factor=4.0, original_length=32, low=1.0, high=3.0)),
    ),
    "yarn": (
        {"rope_type": "yarn", "original_max_position_embeddings": 8, "mscale": 1.0, "mscale_all_dim": 1.0},
        Rotary(scaling=rotary_scaling.YaRN(factor=4.0, original_length=8, attention_factor=1.0)),
    ),
}


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("option", ["rope_parameters", "rope_scaling"])
def test_rotary_scalings(name, option):
    given, expected = ROPES[name]
    config = {key: value for key, value in CONFIGS["llama"].items() if key != "rope_parameters"}
    model = hf.describe({**config, option: given})
    assert model.stack.segments[0].layers[0].sublayers[0].position == expected


@pytest.mark.parametrize(
    "given, message",
    [
        ({"rope_type": "longrope"}, "of type 'longrope'; supported are default"),
        ({"rope_type": "linear"}, "lacks factor among"),
        ({"rope_theta": 5.0, "partial_rotary_factor": 0.5}, "'partial_rotary_factor': 0.5}, which is not supported"),
    ],
)
def test_rotary_scalings_that_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        hf.describe({**CONFIGS["llama"], "rope_parameters": given})
