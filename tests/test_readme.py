"""What the README and the guide for contributors show runs, names what exists and gives the commands that CI gives."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import stackjax as sj

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
GUIDES = [ROOT / "README.md", *(ROOT / ".github").glob("*.md")]
CI = (ROOT / ".ci" / "run").read_text()


def prose(text):
    """A text in one line, so that a sentence is found wherever its lines are broken."""
    return " ".join(text.split())


SMALLER = {"depth=100": "depth=3", "(2, 128)": "(2, 32)", "depth=48": "depth=4"}
"""Sizes with which the code of the README is run every day; as it stands there it takes three times as long."""


@pytest.mark.parametrize("sizes", [SMALLER, pytest.param({}, marks=pytest.mark.thorough)], ids=["smaller", "as shown"])
def test_code_runs(sizes):
    names = {}
    code = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    for shown, smaller in sizes.items():
        assert sum(shown in block for block in code) == 1
        code = [block.replace(shown, smaller) for block in code]
    for block in code:
        exec(block, names)
    depth, n_tokens, deeper = (3, 32, 4) if sizes else (100, 128, 48)
    assert names["logits"].shape == (2, n_tokens, 256)
    assert names["layers"]["stream_rms"].shape == (depth,) and names["layers"]["stream_gradient"].shape == (depth + 1,)
    assert np.isfinite(names["layers"]["stream_gradient"]).all()
    assert np.isfinite(names["squares"]).all() and names["squares"].shape == (deeper + 1,)
    assert names["measured"]["stream_rms"].shape == (deeper,)
    assert names["y"].shape == names["x"].shape
    assert names["by_head"].shape == names["by_other_head"].shape == (6, 4) and names["by_token"].shape == (6, 16)
    assert all(np.isfinite(names[name]).all() for name in ("by_head", "by_other_head", "by_token", "slope"))
    assert len(np.unique(names["by_head"])) == len(np.unique(names["by_other_head"])) == 24 and np.all(names["slope"])
    assert names["after_each_layer"].shape == (7, 2, 16, 256) and names["exit_losses"].shape == (7,)


def test_code_of_the_package_docstring_is_that_of_the_readme():
    """`help(stackjax)` opens with the code that the README opens with, which the test above runs."""
    shown = re.search(r"A hundred layers, looked into:\n\n(.*?)\n\n`layers", sj.__doc__, re.DOTALL).group(1)
    opening = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL).group(1)
    assert re.sub(r"\s+", " ", shown).strip() == re.sub(r"\s+", " ", opening).strip()


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_links_lead_somewhere(guide):
    links = re.findall(r"\]\(([^)#:]+)\)", guide.read_text())
    assert [link for link in links if not (guide.parent / link).exists()] == []


def test_modules_are_there():
    (table,) = re.findall(r"\| What \|.*?\n\n", TEXT, re.DOTALL)
    for module in re.findall(r"`([a-z0-9_.]+)`", table):
        path = ROOT / "stackjax" / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists(), module


def test_experiments_are_there():
    found = re.findall(r"python -m (experiments\.\w+)", TEXT)
    listed = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert len(listed) > 8
    for module in [*found, *(f"experiments.{name}" for name in listed)]:
        path = ROOT / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists(), module


def test_losses_of_the_sweep_are_those_that_were_found():
    paragraph = re.search(r"^A \[sweep of .*?\n\n", TEXT, re.MULTILINE | re.DOTALL).group()
    result = json.loads((ROOT / "experiments" / "results" / "depth_sweep" / "result.json").read_text())
    text, hops = (
        {(row["recipe"], row["depth"]): row for row in result["rows"] if row.get("task") == task}
        for task in (None, "three_hops")
    )
    found = [text["pre_norm", 0], text["pre_norm", 1], text["post_norm", 10], text["pre_norm", 10]]
    found += [text["deepnorm", 10], hops["pre_norm", 1], hops["pre_norm", 2]]
    wanted = [row["loss"] for row in found] + [np.log(16)]
    wanted[6:6] = [hops["pre_norm", 1][end] for end in ("low", "high")]
    wanted[5:5] = [text["deepnorm", 10][end] for end in ("low", "high")]
    wanted[4:4] = [text["pre_norm", 10][end] for end in ("low", "high")]
    assert re.findall(r"\d\.\d+", paragraph) == [f"{loss:.2f}" for loss in wanted]
    assert text["post_norm", 10]["low"] > text["post_norm", 0]["high"]
    setting = [result["setting"][name] for name in ("steps", "d_model", "batch", "context")]
    assert [int(n) for n in re.findall(r"(?<![.\d])\d+(?![.\d])", paragraph)] == [*setting, 95, 10]
    assert result["clean_tree"] and result["seeds"] == [0, 1, 2] and "three seeds" in paragraph


def _history_cost(result):
    megabytes = {(row["recipe"], row["way"]): row["temp_bytes"] for row in result["rows"] if row["depth"] == 64}
    shares = [100 * x / megabytes[recipe, "scan, none"] for (recipe, way), x in megabytes.items() if way == "one copy"]
    return [64, round(min(shares)), round(max(shares))]


def _layer_drop(result):
    costs = {row["recipe"]: np.mean(row["cost"], 0) for row in result["rows"]}
    cheap = {recipe: sum(cost < 0.01) for recipe, cost in costs.items()}
    together = {
        row["recipe"]: np.mean([rise[int(idle)] for rise, idle in zip(row["together"], row["idle"], strict=True)])
        for row in result["rows"]
    }
    shown = ("pre_norm", "deepnorm")
    idle = {row["recipe"]: [int(n) for n in row["idle"]] for row in result["rows"]}
    spans = [n for recipe in shown for n in (min(idle[recipe]), max(idle[recipe]))]
    both, depth = [round(together[recipe], 2) for recipe in shown], len(costs["pre_norm"])
    return [depth, cheap["pre_norm"], depth, cheap["deepnorm"], 0.01, *spans, *both]


def _norm_gains(result):
    loss = {(row["recipe"], row["gains"], row["depth"]): round(row["loss"], 2) for row in result["rows"]}
    keel = [loss["keel", gains, depth] for gains, depth in (("learned", 128), ("none", 128), ("none", 8), ("none", 0))]
    verdict = {
        row["claim"].partition(",")[0]: row["verdict"] for row in result["predictions"] if "less with" in row["claim"]
    }
    assert [verdict[name] for name in ("keel", "deepnorm", "pre_norm")] == ["supported", *["inconclusive"] * 2]
    return [128, keel[0], keel[1], 8, *keel[2:], loss["deepnorm", "learned", 128], loss["deepnorm", "none", 128]]


def _long_inputs(result):
    longest = max(result["rows"], key=lambda row: row["tokens"])
    blocks = next(row for row in result["rows"] if (row["way"], row["tokens"]) == ("blocks", longest["tokens"]))
    weights = 4 * result["setting"]["n_heads"] * longest["tokens"] ** 2
    return [longest["tokens"], round(blocks["peak_bytes"] / 2**30, 1), weights / 2**30]


def _scale(result):
    unpinned, replicated = (row for row in result["rows"] if "not pinned" in row["way"])
    ours = [row for row in result["rows"] if "not pinned" not in row["way"] and not row["bubble"]]
    piped = [row for row in result["rows"] if row["bubble"]]
    flops, temporary = ([row[f"{name}_ratio"] for row in ours] for name in ("flops", "temporary"))
    ends = [min(flops), max(flops), min(temporary), max(temporary), unpinned["flops_ratio"]]
    ends += [unpinned["temporary_ratio"], replicated["temporary_ratio"]]
    ends += [*(row["flops_ratio"] for row in piped), *(1 / (1 - row["bubble"]) for row in piped)]
    return [round(ratio, 2) for ratio in ends]


def _schedulers(result):
    local, control, ray, slurm = result["rows"]
    return [local["cells"], ray["equal"], slurm["equal"], local["numbers"], control["equal"]]


def _predicted(claim, *fields, digits):
    """The estimate of one prediction."""

    def numbers(result):
        (found,) = (each["found"] for each in result["predictions"] if each["claim"] == claim)
        return [abs(round(found[field], digits)) for field in fields]

    return numbers


def test_what_is_said_of_parity_is_what_was_found():
    result = json.loads((ROOT / "experiments" / "results" / "parity_table" / "result.json").read_text())
    (line,) = re.findall(r"^\| `parity_table` \| .*\| (.*) \|$", TEXT, re.MULTILINE)
    rows = result["rows"]
    gradients = [row["gradients"] for row in rows if row["gradients"] is not None]
    assert f"[{len(rows)} architectures]" in line and f"{len(result['seeds'])} seeds each" in line
    assert max(max(row["logits"], row["hidden"]) for row in rows) < 1e-5
    assert {row["decoding"] for row in rows} == {1.0, None} and {row["round_trip"] for row in rows} == {1.0}
    assert f"gradients, of {len(gradients)}, within 1e-4 (the largest {max(gradients):.0e})" in line.replace(
        "8e-5", "8e-05"
    )


_TREE = _predicted("python, encoder: the tree lowers the loss of the linear arm", "mean", "low", "high", digits=2)


def _tree_long(result):
    (json_line,) = (
        row["loss"]
        for row in result["rows"]
        if (row["group"], row["by"], row["arm"]) == ("json, encoder", "all", "linear")
    )
    verdicts = {each["claim"]: each["verdict"] for each in result["predictions"]}
    assert verdicts["json, encoder: by more than another document's tree does"] == "inconclusive"
    assert verdicts["python, encoder: the tree alone is worse than the line alone"] == "refuted"
    return [*_TREE(result), round(json_line, 2)]


FOUND = {
    "depth_probe": _predicted("last layer's gradient, post-norm over pre-norm, 48 layers", "mean", digits=1),
    "history_cost": _history_cost,
    "layer_drop": _layer_drop,
    "long_inputs": _long_inputs,
    "norm_gains": _norm_gains,
    "scale": _scale,
    "schedulers": _schedulers,
    "tree_positions": _TREE,
    "tree_positions_long": _tree_long,
}
LONGER = {"tree_positions_long": "tree_positions --tasks encoder --steps 1000"}
"""Results of a command with options, by their folder."""


@pytest.mark.parametrize("name", FOUND)
def test_numbers_in_the_table_of_experiments_are_those_that_were_found(name):
    (line,) = re.findall(rf"^\| `{LONGER.get(name, name)}` \| .*\| (.*) \|$", TEXT, re.MULTILINE)
    said = [
        float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*(?:\.\d+)?", re.sub(r"\(.*?\.md\)|1/sqrt", "", line))
    ]
    expected = FOUND[name](json.loads((ROOT / "experiments" / "results" / name / "result.json").read_text()))
    assert [n for n in said if n in expected] == expected, (said, expected)


ATLAS = ROOT / "experiments" / "results" / "depth_atlas"


def test_what_is_said_of_the_atlas_is_what_it_found():
    """Every loss in the discussion, in its order, and the line of the README."""
    result = json.loads((ATLAS / "result.json").read_text())
    rows = result["rows"]
    points = {(row["recipe"], row["depth"]): row for row in rows if row["kind"] == "point"}
    loss = {key: f"{row['loss']:.2f}" for key, row in points.items() if row["loss"] is not None}
    depths = (1, 2, 8, 32, 128, 512, 1024)
    lowest = [min((value for (_, depth), value in loss.items() if depth == d), key=float) for d in depths]
    told = (ATLAS / "discussion.md").read_text()
    assert told.split("```")[1].split("\n")[1:-1] == result["command"].split(" && ")
    (section,) = re.findall(r"^## How deep\n(.*?)^## ", told, re.MULTILINE | re.DOTALL)
    wanted = [("complete_p", depth) for depth in depths]
    wanted += [("rezero", depth) for depth in (1, 32, 1024)] + [("skip_init", depth) for depth in (1, 32, 512)]
    wanted += [("dlcl", depth) for depth in (1, 32, 128)] + [("dense_former", 128)]
    wanted += [(recipe, depth) for recipe in ("pre_norm", "deepnorm") for depth in (32, 128, 512, 1024)]
    wanted += [("pre_norm", 2), ("deepnorm", 2), ("keel", 512), ("no_residual", 32)]
    assert re.findall(r"\d\.\d\d", section) == [*lowest, *(loss[at] for at in wanted)]
    for name in ("rezero", "skip_init", "complete_p"):
        assert {row["word"] for (recipe, depth), row in points.items() if recipe == name and depth} == {"trained"}
    for name in ("pre_norm", "deepnorm"):
        assert all(points[name, depth]["word"] == "no better than no layers" for depth in (32, 128, 512, 1024))
    best = [row for (_, depth), row in points.items() if depth and row["learning_rate"] is not None]
    assert f"Of {len(best)} best rates {sum(bool(row['edge']) for row in best)} are" in prose(told)
    assert {points["complete_p", depth]["learning_rate"] for depth in depths} == {0.016}
    checks = [row for row in rows if row["kind"] == "check" and row["depth"] == 1024 and row["compile_seconds"]]
    ratios = [row["compile_seconds"] / seconds for row in checks if (seconds := row["shallow_compile_seconds"])]
    spread = [f"{x:.2f}" for x in (np.mean(ratios), min(ratios), max(ratios))]
    assert all(x in prose(told) for x in (f"{spread[0]} times", f"{spread[2]} times", f"over {len(ratios)} recipes"))
    line = re.search(r"^\| `depth_atlas` \|.*$", TEXT, re.MULTILINE).group()
    shown = [loss[recipe, depth] for recipe in ("complete_p", "pre_norm") for depth in (2, 32, 128, 1024)]
    assert re.findall(r"\d\.\d\d", line) == [loss["pre_norm", 0], *shown, *spread]
    for depth in (32, 128, 512, 1024):
        words = [row["word"] for (_, at), row in points.items() if at == depth]
        assert f"{words.count('trained')} of {len(words)}" in line


def test_who_gains_from_depth_is_what_the_long_atlas_found():
    result = json.loads((ROOT / "experiments" / "results" / "depth_atlas_long" / "result.json").read_text())
    points = [row for row in result["rows"] if row["kind"] == "point"]
    loss = {(row["recipe"], row["depth"]): f"{row['loss']:.2f}" for row in points if row["loss"] is not None}
    (line,) = re.findall(r"^\| `depth_atlas --plan long` \|.*$", TEXT, re.MULTILINE)
    recipes = ("rezero", "complete_p", "pre_norm", "deepnorm", "post_norm")
    told = [loss["rezero", 0], *(loss[recipe, depth] for recipe in recipes for depth in (1, 8, 32))]
    assert re.findall(r"\d\.\d\d", line) == told and {loss[recipe, 0] for recipe in recipes} == {told[0]}
    assert result["seeds"] == [0, 1, 2] and result["clean_tree"]
    verdicts = {row["claim"]: row["verdict"] for row in result["predictions"]}
    gains = {recipe: verdicts[f"{recipe} with 32 layers over 8, nats"] for recipe in recipes}
    assert {recipe for recipe in recipes if gains[recipe] == "supported"} == {"rezero", "complete_p", "post_norm"}


def test_every_claim_stands_beside_its_verdict():
    """Each claim is a link to its heading in the finding, in the line of its verdict."""
    folder = ROOT / "experiments" / "results" / "claims"
    titles = {f"{c['title']}: {c['verdict']}" for c in json.loads((folder / "result.json").read_text())["claims"]}
    assert titles < set(re.findall(r"^## (.*)$", (folder / "finding.md").read_text(), re.MULTILINE))
    lines = re.findall(r"^- \*(holds|corrected|false|not settled)\*: (.*?)\.$", TEXT, re.MULTILINE | re.DOTALL)
    shown = [(word, anchor) for word, line in lines for anchor in re.findall(r"claims/finding\.md#([\w-]+)\)", line)]
    wanted = [(title.rpartition(": ")[2], re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")) for title in titles]
    assert sorted(shown) == sorted(wanted) and len(shown) > 10


def test_commands_are_those_of_ci():
    assert "bin/python -m pytest\n" in TEXT and "bin/python -m pytest\n" in CI
    assert "bin/python -m experiments.depth_sweep\n" in TEXT and "bin/python -m experiments.depth_sweep" in CI


def test_lint_is_the_same_in_ci_before_a_commit_and_in_the_guide():
    hooks = re.findall(r"^ +entry: (.+)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE)
    of_ci = re.findall(r"^(?:ruff|pyright).*$", CI, re.MULTILINE)
    assert len(hooks) == 3 and hooks == of_ci
    guide = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    assert all(hook.replace(" --check", "") in guide for hook in hooks)


def test_every_marker_is_in_the_guide():
    guide, project = (ROOT / ".github" / "CONTRIBUTING.md").read_text(), (ROOT / "pyproject.toml").read_text()
    markers = re.findall(r'^    "(\w+): .*run with `pytest -m \1`"', project, re.MULTILINE)
    assert len(markers) >= 3 and all(f"`python -m pytest -m {marker}`" in guide for marker in markers)
    assert all(f"not {marker}" in project for marker in markers)


def test_the_change_log_ends_with_this_version():
    log = (ROOT / ".github" / "CHANGELOG.md").read_text()
    assert f"\n## {sj.__version__}\n" in log
