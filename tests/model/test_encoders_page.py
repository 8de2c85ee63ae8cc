"""Every row of the table of docs/encoders.md is built, trained, scored, saved and loaded again."""

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from tiny_models import assert_same_model, tiny_model
from transformers.utils import is_timm_available

from sgma_hf import SgmaForSemanticSegmentation


pytestmark = pytest.mark.long


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "encoders.md").read_text(encoding="utf-8")
ROWS = re.findall(
    r"^\| [^|]+ \| `(\{.*\})` \| ([\d.]+) M \| (yes|no) \|(?: (?:yes|no|not tried) \|){2} [\d.]+ \| ([^|]*) \|$",
    PAGE,
    flags=re.MULTILINE,
)
SIZE = (101, 67)


def test_the_table_is_read():
    assert len(ROWS) == len(re.findall(r"^\| .*model_type", PAGE, flags=re.MULTILINE)) > 40


@pytest.mark.parametrize(("values", "millions", "checkpointing", "notes"), ROWS)
def test_a_row_of_the_table_is_so(values, millions, checkpointing, notes, tmp_path):
    backbone = json.loads(values)
    if backbone["model_type"] == "timm_backbone" and not is_timm_available():
        pytest.skip("timm is not installed")
    model = tiny_model(backbone_config=backbone).train()
    assert f"{sum(p.numel() for p in model.sgma.backbone.parameters()) / 1e6:.1f}" == millions
    assert (model.sgma.pyramid is not None) == (notes == "pyramid")
    assert model.supports_gradient_checkpointing == (checkpointing == "yes")

    generator = torch.Generator().manual_seed(0)
    pixel_values, labels = torch.randn(1, 6, *SIZE, generator=generator), torch.zeros(1, *SIZE, dtype=torch.int64)
    mask = torch.ones(1, 3, *SIZE, dtype=torch.bool)
    mask[:, 0], mask[:, 1, :50] = False, False
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for _ in range(2):
        model(pixel_values, mask, labels=labels, sampling_noise=torch.tensor([0.3])).loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
        if checkpointing == "yes":
            model.gradient_checkpointing_enable()

    model.eval()
    mask[:, 0] = True
    with torch.no_grad():
        encoding = model.encode(pixel_values, mask)
        for subset in itertools.product([False, True], repeat=3):
            if any(subset):
                logits = model.fuse_and_decode(encoding, torch.tensor(subset)).logits
                assert logits.shape == (1, 5, 26, 17) and torch.isfinite(logits).all()
    model.save_pretrained(tmp_path)
    assert_same_model(SgmaForSemanticSegmentation.from_pretrained(tmp_path), model, pixel_values, mask)
