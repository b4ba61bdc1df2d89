"""What is saved is loaded, for every description there is; what is damaged or hostile is refused."""

import dataclasses
import json
import os
import random
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import serialization
from tests.cases import KINDS, POSITIONS, RECIPES, REFUSED
from tests.helpers import output


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnShift(sj.Sublayer):
    """A sublayer that stackjax does not know."""

    by: float = float("inf")

    def spec(self, d_model):
        return {"shift": sj.Spec(shape=(d_model,), role="bias")}

    def apply(self, params, x, side_inputs):
        return x + params["shift"], sj.Aux()


def own_activation(x):
    return x


def described(recipe="pre_norm", position="rotary", kind="decoder", depth=3):
    model = KINDS[kind](RECIPES[recipe], POSITIONS[position], depth)
    return getattr(model, "model", model)


def drawn(model, dtype=np.float32):
    """Parameters that no two leaves share."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda d: jax.device_put(rng.normal(size=d.shape).astype(dtype)), model.declaration())


def same(a, b):
    equal = jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(jax.tree.leaves(equal))


CASES = [
    *((recipe, "rotary", kind) for recipe in RECIPES for kind in KINDS if kind not in REFUSED.get(recipe, ())),
    *(
        ("pre_norm", position, kind)
        for position in POSITIONS
        for kind in KINDS
        if kind not in REFUSED.get(position, ())
    ),
]


def test_every_description_is_what_it_was(tmp_path):
    for case in CASES:
        model = described(*case)
        text = json.dumps(serialization.encode(model), allow_nan=False)
        assert serialization.decode(json.loads(text)) == model, case
    assert len(CASES) > 400


FOLDERS = dict.fromkeys(case for case in CASES if case[2] == "decoder" or case[0] == "pre_norm")


@pytest.mark.parametrize("case", FOLDERS, ids="-".join)
def test_folders_round_trip(case, tmp_path):
    model = described(*case)
    params = drawn(model)
    sj.save(tmp_path / "new" / "folder", model, params)
    again, read = sj.load(tmp_path / "new" / "folder")
    assert again == model and hash(again) == hash(model)
    assert same(read, params)


@pytest.mark.parametrize("kind", KINDS)
def test_no_layers(kind, tmp_path):
    """Empty groups and leaves over no layers survive."""
    model = described(kind=kind, depth=0)
    params = drawn(model)
    sj.save(tmp_path, model, params)
    assert same(sj.load(tmp_path)[1], params)


def test_a_loaded_model_computes_the_same(tmp_path):
    model = described("deepnorm")
    params = model.init(jax.random.key(0))
    tokens = jnp.arange(5)[None]
    sj.save(tmp_path, model, params)
    again, read = sj.load(tmp_path)
    np.testing.assert_array_equal(output(again, read, tokens), output(model, params, tokens))


def test_a_stack_alone_and_dtypes_side_by_side(x64, tmp_path):
    stack = described().stack
    params = drawn(stack, np.float64)
    params["leave"] = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params["leave"])
    params["segments"] = jax.tree.map(lambda x: x.astype(jnp.float16), params["segments"])
    params["segments"]["0"]["0"]["residual"] = drawn(stack, np.float64)["segments"]["0"]["0"]["residual"]
    sj.save(tmp_path, stack, params)
    assert same(sj.load(tmp_path)[1], params)
    with jax.enable_x64(False), pytest.raises(ValueError, match="jax_enable_x64"):
        sj.load(tmp_path)


def test_another_model_in_the_same_folder(tmp_path):
    for recipe in ("pre_norm", "rezero"):
        model = described(recipe)
        sj.save(tmp_path, model, drawn(model))
    assert sj.load(tmp_path)[0] == model
    assert len(list(tmp_path.iterdir())) == 2


def own_model():
    stack = sj.Stack.of(
        sj.Layer(sublayers=(OwnShift(name="shift"), sj.FeedForward(activation=own_activation))),
        depth=2, d_model=4, recipe=sj.recipe.PreNorm(),
    )  # fmt: skip
    return stack


def test_what_is_not_stackjax_must_be_allowed(tmp_path):
    model = own_model()
    sj.save(tmp_path, model, drawn(model))
    with pytest.raises(ValueError, match=r"tests\.test_serialization:OwnShift.*allow=\('tests',\)"):
        sj.load(tmp_path)
    for allow in (("test",), ("tests.test_serial",), ("tests.test_serializations",)):
        with pytest.raises(ValueError, match="not stackjax's"):
            sj.load(tmp_path, allow=allow)
    for allow in (("tests",), ("os", "tests.test_serialization")):
        assert sj.load(tmp_path, allow=allow)[0] == model


@pytest.mark.parametrize("activation", [lambda x: x, jax.tree_util.Partial(own_activation), abs.__call__])
def test_functions_without_a_name_are_refused(activation, tmp_path):
    model = sj.decoder(vocab=5, d_model=4, depth=1, n_heads=2, feed_forward=sj.FeedForward(activation=activation))
    with pytest.raises(ValueError, match=r"cannot be saved|holds numbers"):
        sj.save(tmp_path / "a", model, drawn(model))
    assert not (tmp_path / "a").exists()


def test_jaxs_activations_go_by_their_public_name(tmp_path):
    model = sj.decoder(vocab=5, d_model=4, depth=1, n_heads=2, feed_forward=sj.FeedForward(activation=jax.nn.silu))
    sj.save(tmp_path, model, drawn(model))
    assert '"jax.nn:silu"' in (tmp_path / "model.json").read_text()
    assert sj.load(tmp_path)[0] == model


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "dtype"])
def test_parameters_of_another_model_are_not_written(change, tmp_path):
    model = described()
    params = drawn(model)
    if change == "missing":
        del params["head"]["unembed"]
    elif change == "unknown":
        params["more"] = jnp.zeros(3)
    else:
        kind = (7, 7), np.float32 if change == "shape" else np.int32
        params["head"]["unembed"] = jnp.zeros(*kind) if change == "shape" else params["head"]["unembed"].astype(int)
    with pytest.raises(ValueError, match=r"not this model|has dtype"):
        sj.save(tmp_path / "a", model, params)
    assert change == "dtype" or not (tmp_path / "a").exists()


@pytest.fixture
def saved(tmp_path):
    """A folder with a small model."""
    model = sj.decoder(vocab=5, d_model=4, depth=2, n_heads=2, feed_forward=sj.FeedForward(d_hidden=4))
    params = drawn(model)
    sj.save(tmp_path / "saved", model, params)
    return tmp_path / "saved", model, params


def test_damage_is_noticed(saved):
    """Cut anywhere, emptied, or one bit changed: an error with a sentence, or what was saved."""
    folder, model, params = saved
    chance = random.Random(0)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        damaged = [whole[: chance.randrange(len(whole))] for _ in range(30)] + [b"", whole + b" x", bytes(len(whole))]
        for _ in range(200):
            bit = chance.randrange(8 * len(whole))
            one = bytearray(whole)
            one[bit // 8] ^= 1 << bit % 8
            damaged.append(bytes(one))
        unnoticed = 0
        for content in damaged:
            path.write_bytes(content)
            try:
                again, read = sj.load(folder)
            except ValueError as error:
                assert str(error)
                continue
            unnoticed += 1
            assert again == model and same(read, params)
        assert unnoticed < 5
        path.write_bytes(whole)
    for path in list(folder.iterdir()):
        whole = path.read_bytes()
        path.unlink()
        with pytest.raises(ValueError, match=r"holds no model|lacks"):
            sj.load(folder)
        path.write_bytes(whole)
    assert sj.load(folder)[0] == model


def forge(folder, change):
    """Change the description, its checksum too."""
    path = folder / "model.json"
    content = json.loads(path.read_text())
    content.pop("sha256")
    change(content)
    path.write_text(json.dumps({**content, "sha256": serialization._digest(content)}))


def segment(content):
    return content["description"]["fields"]["stack"]["fields"]["segments"][0]["fields"]


HOSTILE = {
    "newer": (lambda c: c.update(version=2), "newer one"),
    "version": (lambda c: c.update(version="1"), "format version"),
    "format": (lambda c: c.update(format="other"), "no description"),
    "more": (lambda c: c.update(more=1), "damaged"),
    "escape": (lambda c: c["params"].update(file="../params-0123456789abcdef.safetensors"), "beside it"),
    "absolute": (lambda c: c["params"].update(file="/etc/passwd"), "beside it"),
    "no file": (lambda c: c.update(params=None), "beside it"),
    "system": (lambda c: c.update(description={"function": "os:system"}), "not stackjax's"),
    "popen": (lambda c: c["description"].update({"class": "subprocess:Popen"}), "not stackjax's"),
    "prefix": (lambda c: c["description"].update({"class": "stackjaxevil:Model"}), "not stackjax's"),
    "through": (
        lambda c: c["description"].update({"class": "stackjax.serialization:os.system"}),
        "no frozen dataclass",
    ),
    "builtins": (
        lambda c: c["description"].update({"class": "stackjax.serialization:__builtins__"}),
        "no frozen dataclass",
    ),
    "syntax": (lambda c: c["description"].update({"class": "stackjax.serialization"}), "module:name"),
    "relative": (lambda c: c["description"].update({"class": "..:x"}), "module:name"),
    "absent": (lambda c: c["description"].update({"class": "stackjax.model:Absent"}), "does not exist"),
    "list": (lambda c: c["description"].update({"class": ["a"]}), "module:name"),
    "no model": (lambda c: c.update(description=3), "no model"),
    "norm": (lambda c: c.update(description={"class": "stackjax.norm:RMSNorm", "fields": {}}), "no model"),
    "field": (lambda c: c["description"]["fields"].update(colour=1), "no field colour"),
    "fields": (lambda c: c["description"].update(fields=[]), "class and fields"),
    "lacking": (lambda c: c["description"]["fields"].pop("stack"), "cannot be made"),
    "wrong type": (lambda c: c["description"]["fields"].update(stack=3), "."),
    "long": (lambda c: segment(c).update(n=10**15), "a segment repeats"),
    "other depth": (lambda c: segment(c).update(n=3), "a stack of 3 layers says depth=2"),
    "class as function": (lambda c: c.update(description={"function": "stackjax.norm:RMSNorm"}), "no function"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_descriptions(name, saved):
    change, message = HOSTILE[name]
    forge(saved[0], change)
    with pytest.raises(ValueError, match=message):
        sj.load(saved[0])


def test_a_field_that_was_added_later_takes_its_default(saved):
    folder, model, _ = saved
    forge(folder, lambda c: c["description"]["fields"]["head"]["fields"].pop("soft_cap"))
    assert sj.load(folder)[0] == model


def test_deep_nesting_and_links_out_of_the_folder(saved, tmp_path):
    folder = saved[0]
    (params,) = folder.glob("*.safetensors")
    params.rename(tmp_path / params.name)
    params.symlink_to(tmp_path / params.name)
    with pytest.raises(ValueError, match="lacks"):
        sj.load(folder)
    (folder / "model.json").write_text("[" * 10**6)
    with pytest.raises(ValueError, match="damaged"):
        sj.load(folder)


def test_parameters_of_another_model_are_not_read(saved, tmp_path):
    """Two folders whose files were exchanged, checksums and all."""
    folder = saved[0]
    other = sj.decoder(vocab=5, d_model=4, depth=2, n_heads=2, feed_forward=sj.FeedForward(d_hidden=4, bias=True))
    sj.save(tmp_path / "other", other, drawn(other))
    (theirs,) = (tmp_path / "other").glob("*.safetensors")
    entry = json.loads((tmp_path / "other" / "model.json").read_text())["params"]
    (folder / theirs.name).write_bytes(theirs.read_bytes())
    forge(folder, lambda c: c.update(params=entry))
    with pytest.raises(ValueError, match="not this model's"):
        sj.load(folder)


@pytest.mark.parametrize("call", range(3))
def test_a_save_that_is_killed_leaves_the_old_model_or_the_new(call, saved, monkeypatch):
    folder, model, params = saved
    changed = jax.tree.map(lambda x: x + 1, params)
    replace, calls = os.replace, []

    def killed(source, target):
        if len(calls) == call:
            raise KeyboardInterrupt
        calls.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        sj.save(folder, model, changed)
    monkeypatch.undo()
    assert same(sj.load(folder)[1], params)
    sj.save(folder, model, changed)
    assert same(sj.load(folder)[1], changed)


def test_who_reads_and_who_writes_wait_for_each_other(saved):
    folder, model, params = saved
    versions = [jax.tree.map(lambda x, i=i: x + i, params) for i in range(3)]

    def work(i):
        for _ in range(20):
            if i < 3:
                sj.save(folder, model, versions[i])
            _, read = sj.load(folder)
            assert any(same(read, version) for version in versions)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len([*folder.iterdir()]) == 2
