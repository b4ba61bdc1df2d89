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
    "partial_rotary_factor": 0.25,
    "no_rope_layers": [0, 1, 1],
    "mlp_only_layers": [1],
    "id2label": {"0": "one", "1": "other"},
}


def another(name, value):
    """A value of the same kind."""
    if name in OTHERS:
        return OTHERS[name]
    if isinstance(value, bool) or not value:
        return not value
    if isinstance(value, str):
        return "gelu" if value == "relu" else "relu"
    return 2 * value


WITHOUT_EFFECT = {
    "max_position_embeddings": "rotary and sinusoidal positions have no end",
    "n_positions": "the same under another name",
    "original_max_position_embeddings": "of scaled rotary positions",
    "multi_query": "of Falcon's first architecture",
    "same_length": "of XLNet in one direction",
}
LEARNED = (
    "clip_text_model",
    "electra",
    "gpt_neo",
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "opt",
    "bart",
    "mbart",
)
WITH_EFFECT = {
    ("gpt2", "n_positions"),
    ("gpt_bigcode", "n_positions"),
    ("gpt_bigcode", "multi_query"),
    *((kind, "max_position_embeddings") for kind in LEARNED),
}


def changes(reader):
    """The options that were read, with their values, and a config in which one has another; nested ones as well."""
    for name, value in reader.read.items():
        if name not in reader.inside:
            yield name, value, lambda name=name, value=value: {**reader.fields, name: another(name, value)}
        else:
            for inner, given, change in changes(reader.inside[name]):
                yield inner, given, lambda name=name, change=change: {**reader.fields, name: change()}


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_option_matters(kind):
    """Whatever a description reads changes the model or is refused."""
    plain = hf.describe(CONFIGS[kind])
    reader = options.Config(CONFIGS[kind])
    hf.ARCHITECTURES[kind].describe(reader)
    for name, value, change in changes(reader):
        if name in WITHOUT_EFFECT and (kind, name) not in WITH_EFFECT:
            continue
        try:
            changed = hf.describe(change()) != plain
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
    "longrope": (
        {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0},
        Rotary(scaling=rotary_scaling.LongRoPE(factor=2.0, original_length=32, short=(1.0,) * 4, long=(2.0,) * 4)),
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
        ({"rope_type": "axial"}, "of type 'axial'; supported are default"),
        ({"rope_type": "yarn", "type": "linear"}, "type='linear' and of rope_type='yarn'"),
        ({"rope_type": "linear"}, "lacks factor among"),
        ({"rope_theta": 5.0, "partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5, which is not"),
        ({"rope_theta": 5.0, "trick": 1}, "{'trick': 1}, which is not supported"),
    ],
)
def test_rotary_scalings_that_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        hf.describe({**CONFIGS["llama"], "rope_parameters": given})


def test_gpt_oss_is_stretched_where_its_config_does_not_say():
    def position(**given):
        bare = {name: value for name, value in CONFIGS["gpt_oss"].items() if name != "rope_parameters"}
        return hf.describe({**bare, **given}).stack.segments[0].layers[0].sublayers[0].position

    stretched = rotary_scaling.YaRN(factor=32.0, original_length=4096, truncate=False)
    assert position() == position(rope_parameters=None) == Rotary(base=150_000.0, scaling=stretched)
    assert position(rope_theta=5.0) == Rotary(base=5.0, scaling=stretched)
    assert position(rope_parameters={}) == Rotary(base=150_000.0)
    assert position(rope_scaling={"type": "linear", "factor": 2.0}).scaling == rotary_scaling.Linear(factor=2.0)


def without(kind, name):
    return {option: value for option, value in CONFIGS[kind].items() if option != name}


@pytest.mark.parametrize("name", ["max_position_embeddings", "original_max_position_embeddings"])
def test_a_length_by_which_positions_are_stretched_is_never_guessed(name):
    with pytest.raises(ValueError, match=f"lacks {name}"):
        hf.describe(without("phi3", name))


def test_xlnet_of_the_same_length():
    """In one direction it hides more than what is to come; in both it is not read."""
    assert hf.describe({**CONFIGS["xlnet"], "same_length": True}) == hf.describe(CONFIGS["xlnet"])
    hf.describe({**CONFIGS["xlnet"], "same_length": False, "attn_type": "uni"})
    with pytest.raises(ValueError, match="same_length=True and attn_type='uni'"):
        hf.describe({**CONFIGS["xlnet"], "same_length": True, "attn_type": "uni"})


@pytest.mark.parametrize(
    "kind, option, value",
    [
        ("llama", "rope_scaling", 1.5),
        ("llama", "rope_parameters", [1]),
        ("llama", "architectures", 5),
        ("qwen3", "layer_types", 1),
        ("llama", "hidden_act", ["silu"]),
        ("t5", "feed_forward_proj", None),
        ("qwen3_moe", "decoder_sparse_step", 0),
    ],
)
def test_a_value_of_another_kind_is_refused(kind, option, value):
    with pytest.raises(ValueError, match=f"config.json of model_type='{kind}' cannot be read"):
        hf.describe({**CONFIGS[kind], option: value})


TWICE = {
    "YaRN as a model card says, in a config of transformers 5": (
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "rope_scaling": {"type": "yarn", "factor": 4.0},
        },
        r"rope_parameters=.*1000000.* and rope_scaling=.*yarn",
    ),
    "another base outside": (
        {"rope_parameters": {"rope_theta": 1e6}, "rope_theta": 5e5},
        "rope_theta=500000.0 and, in rope_parameters, rope_theta=1000000.0",
    ),
    "another base beside a scaling": (
        {
            "rope_parameters": None,
            "rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 1e6},
            "rope_theta": 5e5,
        },
        "rope_theta=500000.0 and, in rope_scaling, rope_theta=1000000.0",
    ),
    "another original length outside": (
        {
            "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8},
            "original_max_position_embeddings": 16,
        },
        "original_max_position_embeddings=16 and, in rope_parameters, original_max_position_embeddings=8",
    ),
    "another share outside": (
        {"rope_parameters": {"partial_rotary_factor": 0.5}, "partial_rotary_factor": 0.25},
        "partial_rotary_factor=0.25 and, in rope_parameters, partial_rotary_factor=0.5",
    ),
}


@pytest.mark.parametrize("name", TWICE)
def test_two_sources_that_differ_are_refused(name):
    change, message = TWICE[name]
    with pytest.raises(ValueError, match=message):
        hf.describe({**CONFIGS["llama"], **change})


def test_two_sources_complete_each_other_or_agree():
    """What rope_parameters does not say is read outside it, as transformers does."""

    def position(**change):
        model = hf.describe({**CONFIGS["llama"], **change})
        return model.stack.segments[0].layers[0].sublayers[0].position

    assert position(rope_parameters={"rope_type": "default"}, rope_theta=5e5) == Rotary(base=5e5)
    same = {"rope_type": "linear", "factor": 2.0}
    expected = Rotary(base=5e5, scaling=rotary_scaling.Linear(factor=2.0))
    assert position(rope_parameters=same, rope_scaling=same, rope_theta=5e5) == expected


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_an_unknown_option_that_is_nothing_passes(value):
    assert hf.describe({**CONFIGS["llama"], "quantization_config": value}) == hf.describe(CONFIGS["llama"])


@pytest.mark.parametrize("value", [0, 0.0, True, "none", [0], {"bits": 4}])
def test_an_unknown_option_that_is_something_is_refused(value):
    with pytest.raises(ValueError, match="does not know: quantization_config="):
        hf.describe({**CONFIGS["llama"], "quantization_config": value})


@pytest.mark.parametrize("option", ["_remove_final_layer_norm", "output_gate_type", "output_embedding_size"])
def test_options_that_compute_are_not_skipped_for_how_they_begin(option):
    with pytest.raises(ValueError, match=f"does not know: {option}=True"):
        hf.describe({**CONFIGS["llama"], option: True})


def test_ignored_options():
    change = {"new_trick": True, "newer_trick": 3}
    assert hf.describe({**CONFIGS["llama"], **change}, ignore=("new*",)) == hf.describe(CONFIGS["llama"])
    with pytest.raises(ValueError, match=r"does not know: newer_trick=3; if they change nothing, load with ignore"):
        hf.describe({**CONFIGS["llama"], **change}, ignore=("new_trick",))


def test_one_option_under_two_names():
    reader = options.Config({"n_head": 4, "num_attention_heads": 4, "n_layer": 3})
    reader.rename(num_attention_heads="n_head", num_hidden_layers="n_layer")
    assert reader.take("num_attention_heads") == 4 and reader.take("num_hidden_layers") == 3
    assert not reader.unknown(lambda name: False)
    with pytest.raises(ValueError, match="n_head=4 and num_attention_heads=2, which are one option"):
        options.Config({"n_head": 4, "num_attention_heads": 2}).rename(num_attention_heads="n_head")
