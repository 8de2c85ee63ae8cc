"""A fusion of one's own: a class with a name, which travels with the checkpoint or stops it from being saved."""

import importlib
import json
import sys

import pytest
import torch
from absent_package import run_without_package
from tiny_models import spread_weights, tiny_config, tiny_model
from tiny_trainers import make_config, make_trainer
from transformers import AutoModel, AutoModelForSemanticSegmentation

from sgma_hf import SgmaForSemanticSegmentation, SgmaFusion, SgmaModel, register_fusion
from sgma_hf.model.fusion_sgma import FUSIONS, SgmaProjectorMeanFusion
from sgma_hf.training.hub_trainer import link_published


CODE = '''"""At every position each modality counts by a learned number of its own."""

import torch
from torch import nn
from transformers import initialization as init

from sgma_hf import (
    SgmaFusion,
    register_fusion,
)
from sgma_hf.model.layers_sgma import SgmaModalityProjector as Projector


@register_fusion("weighted")
class WeightedFusion(SgmaFusion):
    projector_class = Projector
    has_robustness = True

    def __init__(self, channels, num_modalities, **sizes):
        super().__init__(channels, num_modalities, **sizes)
        self.score = nn.Parameter(torch.zeros(num_modalities))

    def init_weights(self):
        init.normal_(self.score, std=1.0)

    def add_modality(self, projector):
        super().add_modality(projector)
        self.score = nn.Parameter(torch.cat([self.score.data, self.score.data.new_zeros(1)]))

    def drop_modality(self, index):
        super().drop_modality(index)
        self.score = nn.Parameter(torch.cat([self.score.data[:index], self.score.data[index + 1 :]]))

    def combine(self, tokens, bias, modalities):
        scores = self.score[modalities].unsqueeze(2)  # (M', B, 1)
        weights = (scores if bias is None else scores + bias).softmax(0)
        return (weights.unsqueeze(3) * tokens).sum(0), weights.expand(tokens.shape[:3])
'''


@pytest.fixture
def weighted(tmp_path, monkeypatch):
    """Import the module above, and forget it again."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "weighted_fusion.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    yield importlib.import_module("weighted_fusion").WeightedFusion
    forget()


def forget():
    sys.modules.pop("weighted_fusion", None)
    FUSIONS.pop("weighted", None)


def inputs(**more):
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 3, 40, 52, dtype=torch.bool)
    mask[0, 1], mask[1, 0, :, 20:], mask[1, :, :8, :8] = False, False, False
    return {"pixel_values": torch.randn(2, 6, 40, 52, generator=generator), "modality_mask": mask, **more}


def test_it_is_trained_as_the_others_are(weighted):
    model = spread_weights(tiny_model(fusion="weighted")).train()
    assert all(type(stage) is weighted and stage.score.std() > 0 for stage in model.sgma.fusion_stages)
    output = model(**inputs(labels=torch.ones(2, 40, 52, dtype=torch.int64), sampling_noise=torch.zeros(2)))
    output.loss.backward()
    assert all(stage.score.grad.abs().sum() > 0 for stage in model.sgma.fusion_stages)
    maps = output.robustness[0]
    covered = torch.nn.functional.max_pool2d(inputs()["modality_mask"].float(), 4) > 0
    assert (maps[~covered] == 0).all()
    torch.testing.assert_close(maps.sum(1), covered.any(1).float())


def test_one_modality_alone_is_fused_to_what_its_pass_alone_gives(weighted):
    model = spread_weights(tiny_model(fusion="weighted"))
    encoding = model.encode(**inputs())
    rows = torch.arange(2)
    for modality in (0, 2):
        mask = torch.zeros(2, 3, dtype=torch.bool)
        mask[:, modality] = True
        alone = model.sgma.fuse_single(encoding, torch.full((2,), modality))
        # the first row has both, so that the second, which has one, goes the way of `fuse`
        both = mask | torch.tensor([[True, False, True], [False, False, False]])
        together = model.sgma.fuse(encoding, both).feature_maps
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one[rows == 1], other[rows == 1])


def test_it_takes_another_modality_and_forgets_one(weighted):
    model = spread_weights(tiny_model(fusion="weighted"))
    values, mask = inputs(), inputs()["modality_mask"]
    with_height = model(**values).logits
    mask_without = mask.clone()
    mask_without[:, 1] = False
    without_height = model(values["pixel_values"], mask_without).logits
    model.add_modality("thermal")
    wider = torch.cat([values["pixel_values"], torch.randn(2, 1, 40, 52)], dim=1)
    torch.testing.assert_close(model(wider, torch.cat([mask, mask[:, :1] & False], dim=1)).logits, with_height)
    assert (model(wider, torch.cat([mask, mask[:, :1] | True], dim=1)).logits - with_height).abs().max() > 0.01
    model.drop_modality("thermal")
    model.drop_modality("dsm")
    narrower = torch.cat([wider[:, :3], wider[:, 4:6]], dim=1)
    torch.testing.assert_close(model(narrower, mask[:, [0, 2]]).logits, without_height)


def test_it_comes_back_from_its_checkpoint(weighted, tmp_path):
    model = spread_weights(tiny_model(fusion="weighted"))
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModel.from_pretrained(tmp_path / "saved")
    assert type(loaded.sgma.fusion_stages[0]) is weighted
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    trainer = make_trainer(
        tmp_path / "run", model=SgmaForSemanticSegmentation(make_config(fusion="weighted")), max_steps=1
    )
    trainer.train()
    trainer.save_model(tmp_path / "trained")
    code = {path.name for path in (tmp_path / "trained").glob("*.py")}
    assert {"weighted_fusion.py", "modeling_sgma.py"} <= code
    (tmp_path / "trained" / "notes.py").write_text("mine = True")
    link_published(tmp_path / "trained", tmp_path / "pushed")
    assert {path.name for path in (tmp_path / "pushed").glob("*.py")} == code


@pytest.mark.long
def test_its_code_travels_with_the_checkpoint(weighted, tmp_path):
    model = spread_weights(tiny_model(fusion="weighted"))
    model.save_pretrained(tmp_path / "saved")
    model.sgma.save_pretrained(tmp_path / "headless")
    torch.save({"inputs": inputs(), "logits": model(**inputs()).logits.detach()}, tmp_path / "batch.pt")
    names = {"AutoModel", "AutoModelForSemanticSegmentation"}
    auto_map = json.loads((tmp_path / "saved" / "config.json").read_text())["auto_map"]
    assert {auto_map[name] for name in names} == {"weighted_fusion.SgmaForSemanticSegmentation"}
    code = """
from transformers import AutoModel, AutoModelForSemanticSegmentation
batch = torch.load("batch.pt")
for folder, again in (("saved", "again"), ("again", "once_more")):
    for auto_class in (AutoModel, AutoModelForSemanticSegmentation):
        model = auto_class.from_pretrained(folder, trust_remote_code=True)
        assert type(model.sgma.fusion_stages[0]).__name__ == "WeightedFusion"
        torch.testing.assert_close(model(**batch["inputs"]).logits, batch["logits"], rtol=1e-4, atol=1e-5)
    model.save_pretrained(again)
assert type(AutoModel.from_pretrained("headless", trust_remote_code=True)).__name__ == "SgmaModel"
"""
    result = run_without_package(code, tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "again" / "weighted_fusion.py").read_text() == (
        tmp_path / "once_more" / "weighted_fusion.py"
    ).read_text()

    forget()  # with the package, but not the module
    for auto_class in (AutoModel, SgmaForSemanticSegmentation):
        with pytest.raises(ValueError, match=r"`fusion` is 'weighted'.*give `trust_remote_code=True`") as refused:
            auto_class.from_pretrained(tmp_path / "again")
        assert "\n" not in str(refused.value)
    for auto_class in (AutoModelForSemanticSegmentation, SgmaForSemanticSegmentation):
        forget()
        loaded = auto_class.from_pretrained(tmp_path / "again", trust_remote_code=True)
        assert type(loaded) is SgmaForSemanticSegmentation
        torch.testing.assert_close(loaded(**inputs()).logits, model(**inputs()).logits, rtol=1e-4, atol=1e-5)
    other = CODE.replace("scores = self.score", "scores = -self.score")
    (tmp_path / "code" / "weighted_fusion.py").write_text(other)
    forget()
    importlib.invalidate_caches()
    importlib.import_module("weighted_fusion")
    with_other_code = SgmaForSemanticSegmentation(model.config)
    with_other_code.load_state_dict(model.state_dict())
    with_other_code.eval().save_pretrained(tmp_path / "other")
    expected = {"again": model(**inputs()).logits, "other": with_other_code(**inputs()).logits}
    assert (expected["again"] - expected["other"]).abs().max() > 0.01
    forget()
    for name in ("again", "other"):  # two fusions of one name
        loaded = AutoModel.from_pretrained(tmp_path / name, trust_remote_code=True)
        torch.testing.assert_close(loaded(**inputs()).logits, expected[name], rtol=1e-4, atol=1e-5)
    loaded.save_pretrained(tmp_path / "with_package")
    assert "sgma_hf" not in (tmp_path / "with_package" / "weighted_fusion.py").read_text()
    SgmaModel.from_pretrained(tmp_path / "headless")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("import sgma_hf", "line 1, imports sgma_hf"),
        ("from .layers import Layer", "line 1, imports .layers"),
        ("from my_layers import Layer", "line 1, imports my_layers"),
        ("from sgma_hf import load_rows", "imports load_rows from sgma_hf, which does not travel"),
        ("from sgma_hf.data.rows import load_rows", "imports load_rows from sgma_hf.data.rows, which does not travel"),
    ],
)
def test_code_that_cannot_travel_is_refused_before_anything_is_written(weighted, tmp_path, line, reason):
    model = tiny_model(fusion="weighted")
    (tmp_path / "code" / "weighted_fusion.py").write_text(f"{line}\n{CODE}")
    with pytest.raises(ValueError, match=f"'weighted' cannot travel.*{reason}") as refused:
        model.save_pretrained(tmp_path / "saved")
    assert "\n" not in str(refused.value) and not (tmp_path / "saved").exists()


def test_a_class_without_a_file_is_refused_when_its_training_begins(tmp_path, monkeypatch):
    class Local(SgmaProjectorMeanFusion):
        pass

    monkeypatch.setitem(FUSIONS, "local", Local)
    model = SgmaForSemanticSegmentation(make_config(fusion="local"))
    with pytest.raises(ValueError, match=r"Put the class into a file of its own, such as my_fusion\.py"):
        make_trainer(tmp_path, model=model, save_strategy="steps")
    make_trainer(tmp_path, model=model, save_strategy="no").train()


def test_a_fusion_that_the_configuration_does_not_name_is_not_saved(tmp_path):
    class Other(SgmaProjectorMeanFusion):
        pass

    model = tiny_model()
    model.sgma.fusion_stages[1] = Other(8, 3, num_classes=5, num_attention_heads=1)
    with pytest.raises(ValueError, match="holds a Other, and `fusion` of the configuration, 'sgf', is SgmaSemantic"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_names_are_checked(weighted):
    with pytest.raises(ValueError, match=r"`fusion` is 'sum'; expected one of .*'sgf'"):
        SgmaForSemanticSegmentation(tiny_config(fusion="sum"))
    with pytest.raises(ValueError, match="'Sum' is malformed"):
        register_fusion("Sum")
    with pytest.raises(TypeError, match="expected a subclass of SgmaFusion"):
        register_fusion("linear")(torch.nn.Linear)
    with pytest.raises(ValueError, match=r"'sgf' is .*SgmaSemanticGuidedFusion already"):
        register_fusion("sgf")(weighted)
    with pytest.raises(NotImplementedError, match="has no `combine`"):
        register_fusion("nothing")(type("Nothing", (SgmaFusion,), {}))
        try:
            tiny_model(fusion="nothing")(torch.zeros(1, 6, 32, 32))
        finally:
            del FUSIONS["nothing"]
