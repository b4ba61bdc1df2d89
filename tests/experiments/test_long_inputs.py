"""Long inputs: every way is measured, and the sentences follow from the rows."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from experiments import long_inputs
from experiments.long_inputs import Row


class Inline(ThreadPoolExecutor):
    """A pool of this process, which needs no second interpreter."""

    def __init__(self, n, mp_context):
        super().__init__(n)


SMALL = ["--quick", "--tokens", "64", "128", "--written-out", "64", "--window", "16"]


@pytest.mark.thorough
def test_every_way_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(long_inputs, "ProcessPoolExecutor", Inline)
    assert long_inputs.main([*SMALL, "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    measured = [(row["way"], row["tokens"]) for row in rows]
    assert measured == [("written out", 64), ("window", 64), ("blocks", 64), ("window", 128), ("blocks", 128)]
    assert all(row["temp_bytes"] > 0 and row["cpu_seconds"] > 0 and row["peak_bytes"] > 2**26 for row in rows)


@pytest.mark.slow
def test_each_is_measured_in_a_process_of_its_own(tmp_path):
    assert long_inputs.main([*SMALL, "--out", str(tmp_path)]) == 0


def test_growth_is_that_of_the_rows():
    few, many = (
        Row(way="blocks", tokens=n, temp_bytes=n, peak_bytes=0, compile_seconds=0, seconds=0, cpu_seconds=n**2)
        for n in (4, 8)
    )
    assert "2 times the tokens take 2.0 times the temporaries and 4.0 times the processor time" in long_inputs._growth(
        [many, few]
    )


def test_the_largest_cases_are_not_written_out():
    written_out = [n for way, n in long_inputs.cases(long_inputs.USUAL) if way == "written out"]
    assert max(written_out) <= long_inputs.USUAL.written_out < max(long_inputs.USUAL.tokens)
