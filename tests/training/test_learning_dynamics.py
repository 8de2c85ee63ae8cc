import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from tiny_trainers import CHANNELS, MODALITIES, TINY_BACKBONE, make_rows, make_trainer
from transformers import TrainerCallback

from sgma_hf import SgmaConfig, SgmaForSemanticSegmentation, SgmaImageProcessor
from sgma_hf.commands.plot_dynamics import main as plot_dynamics
from sgma_hf.training.dynamics import (
    LearningDynamics,
    feature_separation,
    modality_parameters,
    prototype_drift,
    read_learning_dynamics,
    silhouette,
)
from sgma_hf.training.statistics import TrainingStatistics, contested_cells, mean_robustness
from sgma_hf.visualization.charts import plot_learning_dynamics


FIGURES = {"robustness", "class_robustness", "single_loss", "class_single_loss", "single_miou", "single_iou"}
FIGURES |= {"gradient_norm"}
SCORES = {"average_miou": 0.2, "last1_miou": None, "top1_miou": 0.25}


def points(*values):
    return torch.tensor(values, dtype=torch.float32).unsqueeze(1)


@pytest.mark.parametrize("chunk_size", [1, 3, 1024])
def test_silhouette_of_two_classes_worked_by_hand(chunk_size):
    # own class:     1, 1, 2, 2;  other class: (4 + 6) / 2, (3 + 5) / 2, (4 + 3) / 2, (6 + 5) / 2
    expected = (4 / 5 + 3 / 4 + 1.5 / 3.5 + 3.5 / 5.5) / 4
    features, classes = points(0, 1, 4, 6), torch.tensor([7, 7, 2, 2])
    assert silhouette(features, classes, chunk_size=chunk_size) == pytest.approx(expected, abs=1e-6)


def test_silhouette_takes_the_nearest_other_class_and_scores_a_lone_point_zero():
    # 0 and 1 against 10 alone or 3 alone: 3 is nearer, and both lone points score 0
    features, classes = points(0, 1, 10, 3), torch.tensor([0, 0, 1, 2])
    assert silhouette(features, classes) == pytest.approx((2 / 3 + 1 / 2) / 4, abs=1e-6)


def test_silhouette_is_zero_for_equal_points_and_unknown_for_one_class():
    assert silhouette(points(5, 5, 5, 5), torch.tensor([0, 0, 1, 1])) == 0
    assert silhouette(points(1, 2), torch.tensor([3, 3])) is None
    assert silhouette(points(1, math.nan, 2, 3), torch.tensor([0, 0, 1, 1])) is None


def test_prototype_drift_is_the_mean_angle_not_the_length():
    old = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    assert prototype_drift(2 * old, old) == 0
    new = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, -2.0]])  # 0, 90 and 180 degrees
    assert prototype_drift(new, old) == pytest.approx((0 + 1 + 2) / 3)
    assert prototype_drift(np.zeros((3, 2)), old) is None


def summary(prototypes):
    nan = np.nan
    return {
        "robustness": np.array([0.75, nan]),
        "class_robustness": np.array([[0.5, nan], [nan, nan]]),
        "single_loss": np.array([0.25, nan]),
        "class_single_loss": np.array([[nan, 0.75], [nan, nan]]),
        "single_confusion": np.array([[[3.0, 1.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]]),
        "squared_gradients": np.array([9.0, 0.0]),
        "prototypes": prototypes,
    }


def test_records_and_logs_of_two_epochs():
    dynamics = LearningDynamics(["rgb", "dsm"], ["a", "b"])
    dynamics.add_epoch(summary([np.array([[1.0, 0.0], [0.0, 1.0]])]), epoch=1.0, step=5)
    logs = dynamics.add_epoch(summary([np.array([[1.0, 0.0], [1.0, 0.0]])]), epoch=2.0, step=10)
    assert logs == {
        "dynamics/robustness/rgb": 0.75,
        "dynamics/single_loss/rgb": 0.25,
        "dynamics/single_miou/rgb": pytest.approx((3 / 4 + 4 / 5) / 2),
        "dynamics/gradient_norm/rgb": 3.0,
        "dynamics/gradient_norm/dsm": 0.0,
        "dynamics/prototype_drift/stage1": 0.5,
    }
    first, second = dynamics.epochs
    assert (first["epoch"], first["step"], first["prototype_drift"]) == (1.0, 5, None)
    assert second["prototype_drift"] == [0.5]
    assert second["modalities"]["rgb"]["class_robustness"] == [0.5, None]
    assert second["modalities"]["rgb"]["single_iou"] == [3 / 4, 4 / 5]
    assert second["modalities"]["rgb"]["class_single_loss"] == [None, 0.75]
    assert second["modalities"]["dsm"] == dict.fromkeys(FIGURES) | {"gradient_norm": 0.0}


def test_an_epoch_without_prototypes_is_compared_over():
    dynamics = LearningDynamics(["rgb", "dsm"], ["a", "b"])
    for epoch, prototypes in enumerate(([np.eye(2)], None, [-np.eye(2)]), start=1):
        dynamics.add_epoch(summary(prototypes), epoch=epoch, step=epoch)
    assert [entry["prototype_drift"] for entry in dynamics.epochs] == [None, None, [2.0]]


def test_an_evaluation_of_the_same_weights_replaces_the_earlier():
    dynamics = LearningDynamics(["rgb"], ["a", "b"])
    logs = dynamics.add_evaluation({"rgb": [0.5, None]}, SCORES, epoch=1.0, step=4, name="eval")
    assert logs == {"dynamics/separation/rgb/stage1": 0.5}
    dynamics.add_evaluation({"rgb": [0.25, 0.0]}, SCORES, epoch=1.0, step=4, name="eval_other")
    dynamics.add_evaluation({"rgb": [0.75, 1.0]}, SCORES | {"top1_miou": 0.5}, epoch=3.0, step=4, name="eval")
    assert [entry["scores"]["top1_miou"] for entry in dynamics.evaluations] == [0.5, 0.25]
    values = [(entry["name"], entry["epoch"], entry["separation"]["rgb"]) for entry in dynamics.evaluations]
    assert values == [("eval", 1.0, [0.75, 1.0]), ("eval_other", 1.0, [0.25, 0.0])]


def test_state_survives_json_exactly():
    dynamics = LearningDynamics(["rgb", "dsm"], ["a", "b"])
    dynamics.add_epoch(summary([np.array([[1 / 3, 0.1], [0.2, 1e-300]])]), epoch=1.0, step=5)
    dynamics.add_evaluation({"rgb": [0.1], "dsm": [None]}, SCORES, epoch=1.0, step=5, name="eval")
    dynamics.steps.append({"step": 5, "epoch": 1.0, "loss": 1 / 3})
    copy = LearningDynamics(["rgb", "dsm"], ["a", "b"])
    copy.load(json.loads(json.dumps(dynamics.to_dict(), allow_nan=False)))
    assert copy.epochs == dynamics.epochs and copy.evaluations == dynamics.evaluations
    assert copy.steps == dynamics.steps
    assert all(np.array_equal(*pair) for pair in zip(copy.prototypes, dynamics.prototypes, strict=True))


def statistics(num_modalities=3, num_labels=5, **options):
    names = MODALITIES[:num_modalities]
    config = SgmaConfig(modalities=names, modality_channels=[1] * num_modalities, num_labels=num_labels)
    return TrainingStatistics(4, config, torch.device("cpu"), **options)


def test_loss_of_one_modality_alone_is_added_up_by_class():
    model = tiny_model().train()
    torch.manual_seed(0)
    mask = torch.ones(2, 3, 32, 32, dtype=torch.bool)
    mask[:, :, 16:] = False
    labels = torch.randint(0, 4, (2, 32, 32))  # class 4 is nowhere
    labels[:, :8] = 255
    outputs = model(torch.randn(2, 6, 32, 32), mask, labels=labels)
    sums = statistics()
    sums.add(outputs, mask, labels, torch.arange(2))
    losses, counts = sums.sums["class_single_loss"]
    expected, expected_counts = torch.zeros(3, 5, dtype=torch.float64), torch.zeros(3, 5, dtype=torch.float64)
    for row, modality in enumerate(outputs.sampled_modality.tolist()):
        for i, j in ((i, j) for i in (2, 3) for j in range(8)):  # cells that are covered, with labels
            label = int(labels[row, 4 * i, 4 * j])
            expected[modality, label] -= outputs.sampled_logits[row, :, i, j].log_softmax(0)[label].double()
            expected_counts[modality, label] += 1
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(counts, expected_counts) and counts.sum() == 32 and counts[:, 4].sum() == 0


@pytest.mark.parametrize("size", [(64, 9), (9, 9), (6, 33)])
def test_finer_logits_are_looked_at_in_the_corner_of_each_cell(size):
    model = tiny_model(logits_stride=1).train()
    torch.manual_seed(0)
    labels = torch.randint(0, 5, (2, *size))
    outputs = model(torch.randn(2, 6, *size), labels=labels)
    sums = statistics()
    sums.add(outputs, torch.ones(2, 3, dtype=torch.bool), labels, torch.arange(2))
    expected = -outputs.sampled_logits.double().log_softmax(1).gather(1, labels[:, None])[..., ::4, ::4].sum()
    losses, counts = sums.sums["class_single_loss"]
    torch.testing.assert_close(losses.sum(), expected, rtol=1e-6, atol=0)
    assert counts.sum() == 2 * math.prod(-(-side // 4) for side in size) == sums.sums["single_confusion"].sum()


def test_robustness_counts_where_modalities_compete():
    """The second covers two of ten columns of cells, where both are equal; alone, the first has robustness 1."""
    maps = torch.zeros(1, 2, 8, 10)
    maps[:, 0], maps[..., :2] = 1, 0.5
    maps[:, :, :, 9] = 0  # nothing is there
    mask = torch.ones(1, 2, 32, 40, dtype=torch.bool)
    mask[:, 1, :, 5:] = False  # ends inside the second column of the finest stage, and the first of the others
    mask[..., 36:] = False
    coarse = tuple(torch.tensor([[[[0.8]], [[0.2]]]]).expand(1, 2, 32 // s, -(-40 // s)) for s in (8, 16, 32))
    contested = contested_cells(mask, (maps, *coarse))
    assert [cells[0].sum((1, 2)).tolist() for cells in contested] == [[16, 16], [4, 4], [2, 2], [1, 1]]
    means, competed = mean_robustness((maps, *coarse), contested)
    torch.testing.assert_close(means, torch.tensor([[(0.5 + 3 * 0.8) / 4, (0.5 + 3 * 0.2) / 4]]))
    assert competed.all()

    labels = torch.zeros(1, 32, 40, dtype=torch.long)  # also where nothing is
    outputs = SimpleNamespace(
        coverage=mask.any(1),
        row_losses=torch.ones(1),
        loss_dict={},
        robustness=(maps, *coarse),
        sampling_probabilities=None,
        prototypes=None,
        sampled_modality=None,
    )
    sums = statistics(num_modalities=2, num_labels=2)
    sums.add(outputs, mask, labels, torch.tensor([0]))
    assert sums.sums["class_robustness"].tolist() == [[[8, 0], [8, 0]], [[16, 0], [16, 0]]]
    torch.testing.assert_close(sums.sums["robustness"], torch.stack([means[0], torch.ones(2)]).double())

    for other in (torch.tensor([[True, False]]), mask & torch.tensor([True, False]).view(2, 1, 1)):
        assert not mean_robustness(outputs.robustness, contested_cells(other, outputs.robustness))[1].any()


def parameter(*gradient):
    value = torch.nn.Parameter(torch.zeros(len(gradient)))
    value.grad = torch.tensor(gradient)
    return value


def test_squared_gradients_are_added_over_steps_and_shards():
    sums = statistics()
    without = torch.nn.Parameter(torch.zeros(2))
    sums.add_gradients([[parameter(3.0, 0.0), parameter(4.0)], [without], []])
    sums.add_gradients([[parameter(1.0)], [parameter(2.0), without], []], counted=False)  # another shard
    sums.add_gradients([[parameter(torch.inf)], [without], []])  # float16 overflowed: no such step
    assert sums.sums["squared_gradients"].tolist() == [[26, 4, 0], [1, 0, 0]]


def test_parameters_of_a_modality_are_its_projectors_and_its_stem():
    groups = modality_parameters(tiny_model(), 3)
    assert [len(group) for group in groups] == [20, 20, 21]  # 4 weights in 4 stages, 4 of an adapter; SAR's projection
    plain = tiny_model(fusion="mean", modality_adapter_size=0)
    groups = modality_parameters(torch.nn.ModuleDict({"module": plain}), 3)
    assert [len(group) for group in groups] == [0, 0, 1]


def test_mean_prototypes_are_those_of_rows_that_have_two_modalities():
    model = tiny_model().train()
    mask = torch.tensor([[True, True, False], [False, True, False], [True, True, True]])
    torch.manual_seed(0)
    inputs = {"pixel_values": torch.randn(3, 6, 32, 32), "labels": torch.randint(0, 5, (3, 32, 32))}
    outputs = model(**inputs, modality_mask=mask, output_prototypes=True)
    sums = statistics(stage_channels=model.sgma.channels)
    for _ in range(2):
        sums.add(outputs, mask, inputs["labels"], torch.arange(3))
    alone = torch.tensor([[False, True, False]] * 3)
    sums.add(
        model(**inputs, modality_mask=alone, output_prototypes=True), alone, inputs["labels"], torch.arange(3)
    )  # has none
    assert sums.sums["prototype_rows"].tolist() == [4]
    for stage, prototypes in enumerate(outputs.prototypes):
        expected = 2 * (prototypes[0] + prototypes[2]).double()
        torch.testing.assert_close(sums.sums[f"prototypes_{stage}"], expected.detach())


def test_separation_takes_the_feature_of_each_pixels_cell():
    torch.manual_seed(0)
    config = SgmaConfig(modalities=MODALITIES, modality_channels=CHANNELS, num_labels=3, backbone_config=TINY_BACKBONE)
    model = SgmaForSemanticSegmentation(config).train()
    processor = SgmaImageProcessor(MODALITIES, CHANNELS)
    row = make_rows(2, size=28)[1]  # padded to 32; its height model covers the left half
    row["label"][:3] = 255
    row["nir"] = None
    separation = feature_separation(model, processor, [row])  # less than 1024 pixels: all of them
    assert model.training
    images = {name: row[name] for name in MODALITIES}
    inputs = processor(images=[images], segmentation_maps=[row["label"]], return_tensors="pt")
    with torch.no_grad():
        encoding = model.eval().encode(inputs["pixel_values"], inputs["modality_mask"])
    labels = inputs["labels"][0]
    for index, name in enumerate(["rgb", "dsm"]):
        seen = (labels != 255) & inputs["modality_mask"][0, index]
        for stage, stride, value in zip(encoding.stages, (4, 8, 16, 32), separation[name], strict=True):
            maps = stage.tokens[encoding.position[0, index]].unflatten(0, stage.size)
            pixels = maps.repeat_interleave(stride, 0).repeat_interleave(stride, 1)[:28, :28]
            assert value == pytest.approx(silhouette(pixels[seen], labels[seen]), abs=1e-4)
    assert separation["nir"] == [None] * 4


def test_separation_is_bounded_seeded_and_leaves_the_random_state_alone():
    model, processor = tiny_model(fusion="mean"), SgmaImageProcessor(["rgb", "dsm", "sar"], [3, 1, 2])
    rows = [{**row, "sar": None} for row in make_rows(3)]
    rows.append({"id": "unlabelled", "rgb": None, "dsm": None, "sar": None, "label": None})
    state = torch.get_rng_state()
    model.config.tile_size = 20
    first = feature_separation(model, processor, rows, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert first == feature_separation(model, processor, rows, seed=1)
    assert first != feature_separation(model, processor, rows, seed=2)


class Reporter(TrainerCallback):
    """As TensorBoard's: what is logged after the end would open another file."""

    def __init__(self):
        self.logs, self.ended = {}, False

    def on_log(self, args, state, control, logs=None, **kwargs):
        assert not self.ended
        self.logs |= logs

    def on_train_end(self, args, state, control, **kwargs):
        self.ended = True


class GradientReader(TrainerCallback):
    """Norm of the gradient of height's projectors and adapter in every step; None where no row of it had height."""

    def __init__(self):
        self.norms = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        own = [model.sgma.stems[1], *(stage.projectors[1] for stage in model.sgma.fusion_stages)]
        parts = [p.grad for module in own for p in module.parameters()]
        there = [part.flatten() for part in parts if part is not None]
        self.norms.append(torch.cat(there).norm().item() if there else None)


@pytest.mark.long
def test_training_records_every_figure_logs_it_and_draws_it(tmp_path):
    reporter, gradients = Reporter(), GradientReader()
    trainer = make_trainer(tmp_path, eval_strategy="epoch", modality_dropout=[0.2])
    trainer.add_callback(reporter)
    trainer.add_callback(gradients)
    trainer.train()
    record = read_learning_dynamics(tmp_path)
    assert [(entry["epoch"], entry["step"]) for entry in record["epochs"]] == [(1.0, 3), (2.0, 6)]
    assert [(entry["step"], entry["name"]) for entry in record["evaluations"]] == [(3, "eval"), (6, "eval")]
    last = record["epochs"][-1]
    for name in MODALITIES:
        assert set(last["modalities"][name]) == FIGURES
        assert 0 < last["modalities"][name]["robustness"] < 1
        assert len(last["modalities"][name]["class_robustness"]) == 3
        single = [entry["modalities"][name]["class_single_loss"] for entry in record["epochs"]]
        assert {len(losses) for losses in single if losses is not None} == {3}  # None where it was not drawn alone
        assert reporter.logs[f"dynamics/robustness/{name}"] == last["modalities"][name]["robustness"]
        assert len(record["evaluations"][0]["separation"][name]) == 4
    history = trainer.state.log_history
    for record_of, key in (("steps", "loss"), ("evaluations", "eval_average_miou")):
        logged = [(entry["step"], entry["epoch"], entry[key]) for entry in history if key in entry]
        values = [entry.get("loss") or entry["scores"]["average_miou"] for entry in record[record_of]]
        assert [(entry["step"], entry["epoch"]) for entry in record[record_of]] == [entry[:2] for entry in logged]
        assert values == [entry[2] for entry in logged]
    assert all(0 < drift < 2 for drift in last["prototype_drift"])
    assert reporter.logs["dynamics/prototype_drift/stage4"] == last["prototype_drift"][3]
    norms = [norm for norm in gradients.norms[3:] if norm is not None]
    expected = math.sqrt(sum(norm**2 for norm in norms) / len(norms))
    assert last["modalities"]["dsm"]["gradient_norm"] == pytest.approx(expected, rel=1e-5)
    trainer.remove_callback(reporter)
    trainer.evaluate()  # of the same weights: the same figures in the same place
    assert read_learning_dynamics(tmp_path) == record
    pytest.importorskip("matplotlib")
    assert plot_dynamics(["--run", str(tmp_path), "--output", str(tmp_path / "figures" / "a.png"), "--dpi", "40"]) == 0
    assert (tmp_path / "figures" / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_the_record_of_a_resumed_run_is_that_of_the_uninterrupted_one(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    make_trainer(tmp_path / "a", **options).train()
    shutil.copytree(tmp_path / "a" / "checkpoint-4", tmp_path / "b" / "checkpoint-4")
    make_trainer(tmp_path / "b", **options).train(resume_from_checkpoint=True)
    paths = [tmp_path / name / "learning_dynamics.json" for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert len(json.loads(paths[0].read_text())["evaluations"]) == 3


@pytest.mark.parametrize("fusion", ["mean", "projector_mean", "sgf"])
def test_what_a_model_lacks_is_none_and_has_no_panel(tmp_path, fusion):
    config = SgmaConfig(
        modalities=MODALITIES,
        modality_channels=CHANNELS,
        num_labels=3,
        backbone_config=TINY_BACKBONE,
        decoder_hidden_size=16,
        fusion=fusion,
        mas_loss_weight=0.0,
        modality_adapter_size=0,
    )
    make_trainer(tmp_path, model=SgmaForSemanticSegmentation(config)).train()
    record = read_learning_dynamics(tmp_path)
    last = record["epochs"][-1]
    for name in MODALITIES:
        figures = last["modalities"][name]
        assert figures["single_loss"] is figures["single_miou"] is figures["single_iou"] is None
        assert figures["class_single_loss"] is None
        assert (figures["robustness"] is None) == (figures["class_robustness"] is None) == (fusion != "sgf")
        assert (figures["gradient_norm"] is None) == (fusion == "mean")  # 3 bands and 1 need no stem
    assert (last["prototype_drift"] is None) == (fusion != "sgf")
    pytest.importorskip("matplotlib")
    figure = plot_learning_dynamics(record)
    titles = [panel.get_title() for panel in figure.axes]
    assert titles[0] == "Training loss" and "Validation mIoU" not in titles
    assert "Loss of one modality alone" not in titles and "Silhouette (mean of the stages)" not in titles
    assert ("Robustness" in titles) == (fusion == "sgf")


def recorded_run(epochs=15):
    """A record of two modalities and classes, with a spike in one logging step and in one epoch."""
    figures = {"robustness": 0.5, "class_robustness": [0.5, None], "single_loss": 1.0, "class_single_loss": None}
    figures |= {"single_miou": 0.5, "single_iou": [0.5, 0.25], "gradient_norm": 1.0}
    record = {"modalities": ["rgb", "dsm"], "class_names": ["a", "b"], "steps": [], "epochs": [], "evaluations": []}
    for epoch in range(1, epochs + 1):
        place = {"epoch": float(epoch), "step": 10 * epoch}
        norm = 1e6 if epoch == 8 else 1.0
        modalities = {name: figures | {"gradient_norm": norm} for name in record["modalities"]}
        record["steps"].append(place | {"loss": 500.0 if epoch == 5 else 2.0})
        record["epochs"].append(place | {"modalities": modalities, "prototype_drift": [0.1, 0.1, None, 0.2]})
        scores = {"average_miou": 0.9 if epoch == 8 else 0.5, "last1_miou": 0.25, "top1_miou": 0.9}
        separation = {"rgb": [0.1, None, 0.2, 0.3], "dsm": [None] * 4}
        record["evaluations"].append(place | {"name": "eval", "scores": scores, "separation": separation})
    return record


def test_loss_and_validation_come_first_and_no_single_step_is_a_spike():
    pytest.importorskip("matplotlib")
    figure = plot_learning_dynamics(recorded_run())
    panels = {panel.get_title(): panel for panel in figure.axes}
    assert list(panels)[:2] == ["Training loss", "Validation mIoU"]
    assert all(panel.has_data() for panel in panels.values())
    assert "running medians of 5 points" in figure.get_supxlabel()

    def values(title):
        return [line.get_ydata().tolist() for line in panels[title].get_lines()]

    assert values("Training loss") == [[2.0] * 15] and values("Gradient norm (RMS, clipped)") == [[1.0] * 15] * 2
    assert values("Validation mIoU")[0] == [0.5] * 7 + [0.9] + [0.5] * 7  # a score is what it is
    few = plot_learning_dynamics(recorded_run(epochs=9))
    assert few.axes[0].get_lines()[0].get_ydata().max() == 500.0


def damage_steps(record):
    record["steps"][0]["loss"] = "two"


def damage_modality(record):
    del record["epochs"][3]["modalities"]["dsm"]


def damage_classes(record):
    record["epochs"][3]["modalities"]["dsm"]["single_iou"] = [0.5]


def damage_drift(record):
    record["epochs"][0]["prototype_drift"] = 0.5


def damage_evaluation(record):
    record["evaluations"] = {"eval": 0.5}


def damage_separation(record):
    record["evaluations"][0]["separation"]["rgb"] = [0.1, {}, None, 0.2]


def damage_epochs(record):
    record["epochs"] = [None]


@pytest.mark.parametrize(
    "damage",
    [
        damage_steps,
        damage_modality,
        damage_classes,
        damage_drift,
        damage_evaluation,
        damage_separation,
        damage_epochs,
    ],
)
def test_a_record_that_was_damaged_by_hand_ends_in_one_line(tmp_path, capsys, damage):
    record = recorded_run()
    path = tmp_path / "learning_dynamics.json"
    path.write_text(json.dumps(record))
    assert read_learning_dynamics(tmp_path) == record
    damage(record)
    path.write_text(json.dumps(record))
    assert plot_dynamics(["--run", str(tmp_path), "--output", str(tmp_path / "a.png")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sgma-hf plot-dynamics: {path} is no record of learning dynamics: ")


def test_a_figure_without_an_ending_is_named_as_it_was_written(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "learning_dynamics.json").write_text(json.dumps(recorded_run()))
    for name, written in (("figure", "figure.png"), ("b.svg", "b.svg")):
        assert plot_dynamics(["--run", str(tmp_path), "--output", str(tmp_path / name), "--dpi", "20"]) == 0
        assert capsys.readouterr().out == f"{tmp_path / written}: 15 epochs, 15 evaluations\n"
        assert (tmp_path / written).is_file()


def test_folders_and_files_without_a_record_are_named(tmp_path, capsys):
    assert plot_dynamics(["--run", str(tmp_path), "--output", str(tmp_path / "a.png")]) == 2
    assert "has no learning_dynamics.json; expected" in capsys.readouterr().err
    (tmp_path / "learning_dynamics.json").write_text('{"epochs": []')
    with pytest.raises(ValueError, match="is no record of learning dynamics"):
        read_learning_dynamics(tmp_path)
    with pytest.raises(ValueError, match="has no epoch"):
        plot_learning_dynamics(recorded_run(epochs=0))
