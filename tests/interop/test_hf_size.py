"""Checkpoints of real size, written on the spot: memory while they are loaded, on one device and on a mesh."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stackjax.interop import hf
from stackjax.interop.hf import folder
from tests.interop import sized

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
ROOT = Path(__file__).parents[2]


def loaded(*words, n_devices=1):
    """What a process says that loads a checkpoint, see `sized`."""
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={n_devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "tests.interop.sized", str(words[0]), str(n_devices), *map(str, words[1:])]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("size", sized.SIZES)
def test_loading_takes_the_weights_and_little_more(size, tmp_path):
    sized.write(tmp_path / "a", size)
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 2
    said = loaded(tmp_path / "a", tmp_path / "b")
    n_params = hf.describe(sized.config_of(size)).n_params
    assert said["weights"] == 2 * n_params and n_params > {"150 M": 1.4e8, "1.5 B": 1.4e9}[size]
    assert said["peak"] - said["before"] <= 1.15 * said["weights"]
    assert np.shape(said["tokens"]) == (1, 4) and min(map(min, said["tokens"])) >= 0
    written, read = (folder.read_tensors(tmp_path / name) for name in "ba")
    assert written.keys() == read.keys()
    assert all(written[name].read().tobytes() == read[name].read().tobytes() for name in read)


def test_a_mesh_holds_one_copy_in_all(tmp_path):
    """Eight devices that share the memory of one process: each holds its part, and the process no second copy."""
    sized.write(tmp_path / "a", "150 M")
    said = loaded(tmp_path / "a", n_devices=8)
    assert said["peak"] - said["before"] <= 1.15 * said["weights"]
    assert said["largest_device"] <= 1.01 * said["weights"] / 8


@pytest.mark.parity
@pytest.mark.parametrize("size", sized.SIZES)
def test_transformers_reads_what_was_saved(size, tmp_path):
    """Every tensor is bit for bit what was written first, and a greedy token is ours."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sized.write(tmp_path / "a", size)
    said = loaded(tmp_path / "a", tmp_path / "b")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype=torch.bfloat16)
    weights = model.state_dict()
    for name, tensor in folder.read_tensors(tmp_path / "a").items():
        np.testing.assert_array_equal(weights[name].view(torch.int16).numpy(), tensor.read().view(np.int16))
    with torch.no_grad():
        logits = model(torch.tensor([sized.PROMPT])).logits[0, -1].float()
    rounding = 0.05 * (logits.max() - logits.min())
    assert logits[said["tokens"][0][0]] > logits.max() - rounding
