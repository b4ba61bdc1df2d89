"""The architecture from outside: it loads, saves and is refused like those that are built in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import own_architecture
from experiments.lab import names
from experiments.lab.command_line import OK, USAGE
from experiments.parity_table.__main__ import main as compare
from experiments.x_ray.__main__ import main as x_ray
from stackjax.interop import hf
from stackjax.parameter import is_spec

WORD = "experiments.own_architecture:ARCHITECTURES"
CONFIG = {
    "model_type": "arcee",
    "architectures": ["ArceeForCausalLM"],
    "vocab_size": 256,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_theta": 10000.0,
}


def saved(path):
    model, random = hf.describe(CONFIG, architectures=own_architecture.ARCHITECTURES), np.random.default_rng(0)
    leaves, tree = jax.tree.flatten(model.declaration(), is_leaf=is_spec)
    params = jax.tree.unflatten(tree, [jnp.asarray(random.normal(size=leaf.shape), jnp.float32) for leaf in leaves])
    hf.save(path, params, CONFIG, architectures=own_architecture.ARCHITECTURES)
    return model, params


def test_it_loads_as_its_first_lines_say(tmp_path):
    model, params = saved(tmp_path / "a")
    both = {**hf.ARCHITECTURES, **own_architecture.ARCHITECTURES}
    loaded = hf.load(tmp_path / "a", architectures=both)
    assert loaded.model == model and jax.tree.all(jax.tree.map(np.array_equal, loaded.params, params))
    with pytest.raises(ValueError, match=r"'arcee' is not supported; .* help\(stackjax\.interop\.hf\) and experiments"):
        hf.load(tmp_path / "a")


@pytest.mark.thorough
def test_x_ray_looks_into_it(tmp_path, capsys):
    saved(tmp_path / "a")
    words = [str(tmp_path / "a"), "--context", "8", "--windows", "1", "--out", str(tmp_path / "a.html")]
    assert x_ray([*words, "--architectures", WORD]) == OK and (tmp_path / "a.html").is_file()
    capsys.readouterr()
    assert x_ray(words) == USAGE and "'arcee' is not supported" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["experiments.own_architecture:TENSORS", "nowhere:X", "experiments.own_architecture"])
def test_other_things_at_the_path_are_refused(name):
    with pytest.raises(ValueError, match=r"is no mapping|cannot be imported"):
        names.architectures_named(name)


@pytest.mark.parity
def test_the_table_measures_it(tmp_path, capsys):
    pytest.importorskip("transformers")
    assert compare(["--architectures", WORD, "--seeds", "2", "--out", str(tmp_path)]) == OK
    assert "| arcee |" in capsys.readouterr().out
