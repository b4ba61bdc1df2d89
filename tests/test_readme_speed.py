"""What the README and the benchmark's discussion say of speed is what was measured."""

import json
import re
from collections import Counter

import numpy as np

from tests.test_readme import ROOT, TEXT, prose


def test_what_is_said_of_steps_and_decoding_on_a_cpu_is_what_was_found():
    result, wide, decoding = (
        json.loads((ROOT / "experiments" / "results" / name / "result.json").read_text())
        for name in ("bench", "bench_wide", "bench_decode")
    )

    def extremes(result, peer, remat):
        seconds = {(row["peer"], row["depth"]): row["step_seconds"] for row in result["rows"] if row["remat"] == remat}
        ratios = [seconds["stackjax", depth] / seconds[peer, depth] for _, depth in seconds]
        return [f"{min(ratios):.2f}", f"{max(ratios):.2f}"]

    depths = sorted({row["depth"] for row in result["rows"]})
    peers = ((result, "torch", "none"), (result, "torch", "layer"), (result, "torch_compile", "none"))
    peers += ((wide, "torch", "none"),)
    speeds = [row["tokens_per_second"] for row in decoding["decode"]]
    faster = [speed["stackjax"] / speed["transformers"] for speed in speeds]
    (line,) = re.findall(r"^\| `bench` \| .*\| (.*) \|$", TEXT, re.MULTILINE)
    told = [word for peer in peers for word in extremes(*peer)] + [f"{min(faster):.1f}", f"{max(faster):.1f}"]
    assert re.findall(r"\d\.\d+", line) == told and f"{depths[0]} to {depths[-1]} layers" in line
    assert all(each["clean_tree"] for each in (result, wide, decoding))


def test_what_is_said_of_runs_at_once_is_what_was_found():
    folder = ROOT / "experiments" / "results"
    result = json.loads((folder / "bench_lanes" / "result.json").read_text())

    def span(values):
        return [f"{min(values):.2f}", f"{max(values):.2f}"]

    def against_one_after_another(field, way, recipe=""):
        rows = [row for row in result["sweep"] if recipe in row["recipe"]]
        return span([row[field][way] / row[field]["one after another"] for row in rows])

    told = (folder / "bench" / "discussion.md").read_text()
    (section,) = re.findall(r"^## Runs of a sweep at once\n(.*?)^## ", told, re.MULTILINE | re.DOTALL)
    found = span([np.mean(row["ratios"]) for row in result["sweep"]])
    found += [*against_one_after_another("compile_seconds", "vmap"), "1.05", "1.15"]
    for recipe in ("pre_norm", "hyper_connections"):
        found += against_one_after_another("seconds", "by a vmap of one", recipe)
    assert re.findall(r"\d\.\d\d", section) == found and result["clean_tree"]


def test_what_is_said_of_a_steps_parts_is_what_was_found():
    folder = ROOT / "experiments" / "results"
    profile = json.loads((folder / "profile" / "result.json").read_text())
    parts = Counter()
    for row in profile["rows"]:
        if row["way"] == "kept":
            parts[row["kind"].partition(",")[0]] += row["milliseconds"]
    told = prose((folder / "bench" / "discussion.md").read_text())
    shares = sorted((round(100 * part / parts.total()) for part in parts.values()), reverse=True)
    paragraph = told[told.index("What is left of a step") : told.index("If all but the products")]
    assert [int(n) for n in re.findall(r"(\d+) %", paragraph)] == shares
    found = profile["setting"]["found"]
    assert f"{found['given back']['page_faults']:,.0f} pages" in told
    assert 0.6 < found["kept"]["step_seconds"] / found["given back"]["step_seconds"] < 0.75  # "a third of the time"
    rate = json.loads((folder / "bench" / "result.json").read_text())["matmul_flops_per_second"]
    assert f"to {rate / 1e9:.0f} in another" in told


def test_what_is_said_of_the_gpu_is_what_was_found():
    trained, other = (
        json.loads((ROOT / "experiments" / "results" / name / "result.json").read_text())
        for name in ("bench_gpu", "bench_gpu_decode")
    )
    (line,) = re.findall(r"^\| `bench --large` \| .*\| (.*) \|$", TEXT, re.MULTILINE)
    rows = {(row["peer"], row["remat"]): row for row in trained["rows"]}
    flops = trained["model_flops"]["20"] / trained["peak"]
    shares = [100 * flops / rows["stackjax", remat]["step_seconds"] for remat in ("none", "layer")]
    scan, unrolled, eager = (rows[peer, "layer"] for peer in ("stackjax", "unrolled", "torch"))
    ratios = [scan[field] / unrolled[field] for field in ("step_seconds", "temp_bytes")]
    ratios.append(scan["step_seconds"] / eager["step_seconds"])
    by_way = {row["way"]: row["tokens_per_second"] for row in other["packed"]}
    speeds = {(row["batch"], row["prompt"]): row["tokens_per_second"] for row in other["decode"]}
    ratio = {key: speed["stackjax"] / speed["transformers"] for key, speed in speeds.items()}
    words = [*(f"{share:.0f} %" for share in shares), *(f"{x:.2f} times" for x in ratios)]
    words += [f"{by_way[way]:,.0f}" for way in ("packed", "padded")]
    words += [f"{ratio[1, 16]:.1f} times", f"{ratio[32, 512]:.1f} times"]
    again, plain = rows["stackjax", "layer"], rows["stackjax", "none"]
    costs = again["step_seconds"] / plain["step_seconds"] - 1, 1 - again["temp_bytes"] / plain["temp_bytes"]
    (said,) = re.findall(r"costs (\d+) % of the time and saves (\d+) % of the temporaries", prose(TEXT))
    assert said == tuple(f"{100 * cost:.0f}" for cost in costs)
    places = [line.find(word) for word in words]
    assert -1 not in places and places == sorted(places), (words, places)
