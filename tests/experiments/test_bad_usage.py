"""What cannot be is refused by every command: exit status 2, one line that says what is wrong, nothing written."""

import os
import re
import sys
from pathlib import Path

import pytest

from experiments.lab import command_line
from experiments.lab.command_line import OK
from tests.experiments.conftest import SIZES, module_of, options_of
from tests.experiments.test_bad_data import bad_inputs

COMMANDS = (
    "bench",
    "claims",
    "depth_atlas",
    "depth_probe",
    "depth_sweep",
    "growth",
    "history_cost",
    "layer_drop",
    "length_extrapolation",
    "long_inputs",
    "norm_gains",
    "pages",
    "position_gallery",
    "schedulers",
    "train",
    "tree_positions",
    "x_ray",
)
"""All but `parity_table`, which refuses everything where the packages that it compares with are not installed."""
READ_TEXT = ("depth_atlas", "depth_probe", "depth_sweep", "growth", "layer_drop", "length_extrapolation", "norm_gains")


WHOLE = ("many", "1.5", "", "-1", "0", str(10**30))
REAL = ("x", "", "nan", "inf", "-1", "0", "1e400")
FINE = {
    ("bench", "minutes", "0"),
    ("depth_atlas", "depths", "0"),
    ("depth_probe", "steps", "0"),
    ("depth_sweep", "depths", "0"),
    ("depth_sweep", "warmup", "0"),
    ("depth_sweep", "weight_decay", "0"),
    ("depth_sweep", "checkpoint_seconds", "0"),
    ("growth", "first_seed", "0"),
    ("history_cost", "loop_depth", "0"),
    ("long_inputs", "written_out", "0"),
    ("position_gallery", "seed", "0"),
    ("x_ray", "seed", "0"),
    ("tree_positions", "cache", "nonsense"),
    *(("train", option, "0") for option in ("depth", "process", "seed", "warmup", "weight_decay")),
    *((name, "text_field", value) for name in ("depth_sweep", "train") for value in ("nonsense", "")),
}
"""Values that are unusual, and no mistake."""


def generated(name):
    """Every option of a command with values that cannot be, by its type: (option, value)."""
    for option, types in options_of(module_of(name).Options):
        if option == "out" or bool in types:
            continue
        values = WHOLE if int in types else REAL if float in types else ("nonsense", "")
        yield from ((option, value) for value in values if (name, option, value) not in FINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_with_values_that_cannot_be(refused, name, monkeypatch):
    if name == "x_ray":
        monkeypatch.setattr(module_of(name).subject.hf, "describe", unexpected)
    cases = list(generated(name))
    assert len(cases) >= {"claims": 2, "pages": 0, "position_gallery": 10, "schedulers": 0, "x_ray": 15}.get(name, 20)
    for option, value in cases:
        flag = f"--{option.replace('_', '-')}"
        if (name, option) == ("x_ray", "folder"):
            line = refused(name, value)
        elif name == "x_ray" and option != "random":
            line = refused(name, "--random", "gpt2", flag, value)
        else:
            line = refused(name, flag, value)
        assert re.search(rf"{flag}|{option}|{re.escape(repr(value))}|{re.escape(value) or 'no such file'}", line), line


def unexpected(*_):
    raise AssertionError("a model is made before the options are known to be right")


@pytest.mark.parametrize("name", [*COMMANDS, "parity_table"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--no-such-option",), "--no-such-option"),
        (("stray", "words"), "stray|words"),
        (("--out",), "--out|--data|out"),
        (("--quick=3",), "--quick|3"),
    ],
)
def test_words_that_are_no_options(refused, name, words, said):
    assert re.search(said, refused(name, *words))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_result_that_has_no_place(refused, name, monkeypatch, tmp_path, tmp_path_factory):
    """A file in its way, above it or at it; a file system that makes no folders; a name too long; none at all."""
    words = ()
    if name == "x_ray":
        module = module_of(name)
        monkeypatch.setattr(module.subject, "of_random", lambda *_: ("small", None, None))
        monkeypatch.setattr(module.subject, "prepare", lambda *_, **__: None)
        words = ("--random", "gpt2")
    if name == "depth_atlas":
        words = ("--plan", "quick")
    if name == "tree_positions":
        (tmp_path / "trees").mkdir()
        for i in range(20):
            (tmp_path / "trees" / f"{i}.py").write_text(f"x = {i}\n" * 30)
        words = (
            "--quick",
            "--data",
            tmp_path / "trees",
            "--languages",
            "python",
            "--cache",
            tmp_path_factory.mktemp("cache"),
        )
    (tmp_path / "file").write_text("mine")
    if name != "x_ray":
        assert "not a folder" in refused(name, *words, "--out", tmp_path / "file", out=tmp_path / "file")
        assert "--out must name a folder" in refused(name, *words, "--out", "", out="")
    else:
        assert "is a folder; name a file" in refused(name, *words, "--out", tmp_path, out=tmp_path)
    for place in (tmp_path / "file" / "below" / "it", Path("/proc/no/such/folder"), tmp_path / ("a" * 300) / "b"):
        line = refused(name, *words, "--out", place, out=place)
        assert re.search("--out .*(cannot be written|not a folder)", line), line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(refused, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "Permission denied" in refused("position_gallery", "--out", tmp_path / "closed", out=tmp_path / "closed")


@pytest.mark.parametrize("name", READ_TEXT)
def test_data_that_cannot_be_used(refused, name, tmp_path):
    (tmp_path / "data").mkdir()
    inputs = bad_inputs(tmp_path / "data")
    assert len(inputs) > 10
    for options, said in inputs.values():
        more = {option: value for option, value in options.items() if option != "where"}
        if name != "depth_sweep" and more:
            continue
        words = [f"--{option.replace('_', '-')}={value}" for option, value in more.items()]
        assert re.search(said, refused(name, "--data", options["where"], *words)), options


RECIPES = {
    "pre_nrom": "did you mean pre_norm",
    "PreNorm": "unknown recipe",
    "no.such.module:recipe": "cannot be imported: ModuleNotFoundError",
    "tests.experiments.own:missing": "cannot be imported: AttributeError",
    "tests.experiments.own:not_a_recipe": "cannot be made without arguments: TypeError",
    "stackjax.position:Rotary": "is no recipe: it gives Rotary",
    "broken_syntax:recipe": "cannot be imported: SyntaxError",
    "broken_import:recipe": "cannot be imported: ZeroDivisionError: on purpose",
    "..relative:recipe": "cannot be imported: TypeError",
    ":recipe": "cannot be imported",
    "json:": "cannot be imported",
}


@pytest.mark.parametrize("name", ["depth_atlas", "depth_probe", "depth_sweep", "layer_drop"])
def test_recipes_that_are_none(refused, name, tmp_path, monkeypatch):
    (tmp_path / "broken_syntax.py").write_text("def recipe(:\n")
    (tmp_path / "broken_import.py").write_text("raise ZeroDivisionError('on purpose\\nin two lines')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    for recipe, said in RECIPES.items():
        line = refused(name, "--recipes", "pre_norm", recipe)
        assert said in line and repr(recipe) in line, line


BY_HAND = [
    ("bench", ("--quick", "--large"), "--quick and --large"),
    ("bench", ("--peers", "trax"), "unknown peer 'trax'"),
    ("bench", ("--peers",), "--peers needs at least one value"),
    ("bench", ("--depths",), "--depths needs at least one value"),
    ("bench", ("--remats", "some"), "--remats"),
    ("bench", ("--parts", "all"), "--parts"),
    ("bench", ("--n-heads", "3"), "--n-heads must divide --d-model; got 3 and 128"),
    ("bench", ("--dtype", "float16"), "--dtype"),
    ("bench", ("--compile-depths", "4"), "--compile-depths"),
    ("claims", ("--only", "staircase", "no_such"), "--only no_such: no such claim"),
    ("depth_atlas", ("--plan", "longest"), "--plan"),
    ("depth_atlas", ("--depths", "5"), "has none of these depths: 5"),
    ("depth_atlas", ("--d-model", "9"), "n_heads must divide d_model"),
    ("depth_atlas", ("--report-only",), "holds no sweep"),
    ("depth_probe", ("--depths",), "--depths needs at least one value"),
    ("depth_probe", ("--recipes",), "--recipes needs at least one value"),
    ("depth_probe", ("--n-heads", "3"), "n_heads must divide d_model"),
    ("depth_probe", ("--context", "1000000"), "too short"),
    ("depth_sweep", ("--depths",), "--depths needs at least one value"),
    ("depth_sweep", ("--recipes",), "--recipes needs at least one value"),
    ("depth_sweep", ("--learning-rates",), "--learning-rates needs at least one value"),
    ("depth_sweep", ("--learning-rates", "1e-3", "-1e-3"), "must be positive; got 0.001 -0.001"),
    ("depth_sweep", ("--seeds", "100000000"), "1000000 cells at most"),
    ("depth_sweep", ("--warmup", "400"), "--warmup must be 0 or more and less than --steps 400; got 400"),
    ("depth_sweep", ("--steps", "5", "--warmup", "5"), "less than --steps 5; got 5"),
    ("depth_sweep", ("--position", "rotory"), "did you mean rotary"),
    ("depth_sweep", ("--position", "no.module:x"), "cannot be imported"),
    ("depth_sweep", ("--n-heads", "64"), "rotary features must be even"),
    ("depth_sweep", ("--n-heads", "7"), "n_heads must divide d_model; got d_model=64, n_heads=7"),
    ("depth_sweep", ("--schedule", "triangle"), "--schedule"),
    ("depth_sweep", ("--optimizer", "adam"), "--optimizer"),
    ("depth_sweep", ("--lanes", "both"), "--lanes"),
    ("depth_sweep", ("--remat", "some"), "--remat"),
    ("depth_sweep", ("--dtype", "float16"), "--dtype"),
    ("depth_sweep", ("--scheduler", "pbs"), "--scheduler"),
    ("depth_sweep", ("--slurm", "partition"), "--slurm takes options as name=value"),
    ("depth_sweep", ("--log", "aim"), "--log"),
    ("depth_sweep", ("--report-only",), "holds no sweep"),
    ("depth_sweep", ("--batch", "1000000"), "too short"),
    ("depth_sweep", ("--token-dtype", "int8"), "--token-dtype"),
    ("growth", ("--depth", "6"), "--depth must be a multiple of 4"),
    ("growth", ("--shares", "0.5", "1"), "--shares must be between 0 and 1"),
    ("growth", ("--learning-rates",), "--learning-rates must be positive, one or more"),
    ("growth", ("--steps", "50"), "--steps must be 10 --chunk or more"),
    ("growth", ("--n-heads", "3"), "n_heads must divide d_model"),
    ("history_cost", ("--recipes",), "--recipes needs at least one value"),
    ("history_cost", ("--recipes", "keel"), "--recipes knows"),
    ("history_cost", ("--n-heads", "3"), "n_heads must divide d_model"),
    ("layer_drop", ("--recipes",), "--recipes needs at least one value, or --cells"),
    ("layer_drop", ("--n-heads", "3"), "n_heads must divide d_model"),
    ("layer_drop", ("--cells", "/no/such/cell"), "is no cell of a sweep"),
    ("layer_drop", ("--cells", ""), "is no cell of a sweep"),
    ("norm_gains", ("--recipes",), "--recipes needs at least one value"),
    ("norm_gains", ("--recipes", "rezero"), "a residual form with a LayerNorm"),
    ("norm_gains", ("--depths", "8", "8"), "--depths are a shallow and a deeper one"),
    ("norm_gains", ("--seeds", "1"), "--seeds must be 2 or more; got 1"),
    ("norm_gains", ("--n-heads", "3"), "n_heads must divide d_model"),
    ("length_extrapolation", ("--only", "rotory"), "no encoding 'rotory'; there are none, scalar"),
    ("length_extrapolation", ("--context", "31"), "--context must be 32 or more"),
    ("length_extrapolation", ("--d-model", "36"), "rotary features must be even"),
    ("length_extrapolation", ("--data", "/no/such/file"), "no such file"),
    ("tree_positions", ("--languages",), "--languages needs at least one value"),
    ("tree_positions", ("--tasks",), "--tasks needs at least one value"),
    ("tree_positions", ("--tasks", "translator"), "--tasks"),
    ("tree_positions", ("--n-heads", "3"), "n_heads must divide d_model"),
    ("tree_positions", ("--data", "/no/such/folder"), "no such file"),
    ("tree_positions", ("--cache", ""), "--cache must name a folder"),
    ("tree_positions", ("--cache", "/dev/null"), "--cache /dev/null is not a folder"),
    ("x_ray", (), "give a folder, or --random"),
    ("x_ray", ("/tmp", "--random", "gpt2"), "give a folder, or --random"),
    ("x_ray", ("--random", "mamba"), "--random knows gpt2, bert"),
    ("x_ray", ("/no/such/folder",), "/no/such/folder"),
    ("x_ray", ("--random", "gpt2", "--text", "/no/such/text"), "no such file"),
    ("x_ray", ("--random", "gpt2", "--dtype", "float16"), "--dtype"),
]


@pytest.mark.parametrize(("name", "words", "said"), BY_HAND)
def test_by_hand(refused, name, words, said):
    assert said in refused(name, *words)


@pytest.mark.parametrize(
    ("log", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("trackio", "trackio")]
)
def test_a_tracker_that_is_not_installed(refused, monkeypatch, log, package):
    monkeypatch.setitem(sys.modules, package, None)
    line = refused("depth_sweep", "--log", log)
    assert f"--log {log}: " in line and line.endswith(f"; pip install {package}\n")


@pytest.mark.thorough
def test_what_can_be_is_not_refused(monkeypatch, corpus, tmp_path):
    """The cases above are refused for what is wrong with them, and for nothing else."""
    command = command_line.command

    def checked(program, prepare, _, words=None):
        return command(program, prepare, lambda _: OK, words)

    monkeypatch.setattr(command_line, "command", checked)
    sizes = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
    for name in COMMANDS:
        if name in ("x_ray", "tree_positions"):
            continue
        words = ["--out", str(tmp_path / name), *(("--data", str(corpus)) if name in READ_TEXT else ())]
        assert module_of(name).main([*words, *(sizes if name == "depth_sweep" else ())]) == OK
        assert list((tmp_path / name).iterdir()) == []
