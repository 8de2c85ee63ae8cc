"""A save that dies leaves the checkpoint that was there."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import assert_same_model, tiny_model

from sgma_hf import SgmaForSemanticSegmentation


pytestmark = pytest.mark.long


ROOT = Path(__file__).resolve().parents[2]
SAVE = """
import sys
import torch
from tiny_models import tiny_model

model = tiny_model(seed=1)
{before}
model.save_pretrained(sys.argv[1])
print("saved")
"""
DISK_FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails with EFBIG, as it does with ENOSPC
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
"""
# The weights are written by then, but not yet in their place.
KILLED = """
import os, signal
import sgma_hf.model.modeling_sgma
from safetensors.torch import save_file
import transformers.modeling_utils as utils

def save_half(tensors, path, **kwargs):
    save_file(tensors, path, **kwargs)
    os.truncate(path, os.path.getsize(path) // 2)
    os.kill(os.getpid(), signal.SIGKILL)

utils.safe_save_file = save_half
"""


def save_in_a_child(folder, before):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/fixtures")])}
    command = [sys.executable, "-c", SAVE.format(before=before), str(folder)]
    return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=300)


@pytest.mark.parametrize(("before", "code"), [(DISK_FULL, 1), (KILLED, -signal.SIGKILL)], ids=["disk full", "killed"])
def test_a_save_that_dies_leaves_the_earlier_checkpoint(tmp_path, before, code):
    model = tiny_model(seed=0)
    model.save_pretrained(tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = save_in_a_child(tmp_path, before)
    assert result.returncode == code, result.stderr[-2000:]
    assert "saved" not in result.stdout
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == files
    loaded = SgmaForSemanticSegmentation.from_pretrained(tmp_path)
    pixel_values = torch.randn(1, 6, 32, 32)
    assert_same_model(loaded, model, pixel_values)
    # and the next save goes through
    tiny_model(seed=1).save_pretrained(tmp_path)
    loaded = SgmaForSemanticSegmentation.from_pretrained(tmp_path)
    assert_same_model(loaded, tiny_model(seed=1), pixel_values)


def test_a_smaller_checkpoint_takes_the_place_of_one_in_shards(tmp_path):
    tiny_model(seed=0).save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    model = tiny_model(seed=1)
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    pixel_values = torch.randn(1, 6, 32, 32)
    loaded = SgmaForSemanticSegmentation.from_pretrained(tmp_path)
    assert_same_model(loaded, model, pixel_values)
