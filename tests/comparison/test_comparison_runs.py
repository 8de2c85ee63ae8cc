"""One run of a comparison: what is the same for all arms, what a line holds, and that a seed decides it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from comparison_fixtures import TINY, write_scenes
from transformers import CONFIG_MAPPING, AutoBackbone

from sgma_hf.comparison import runs
from sgma_hf.comparison.arms import ARMS, COMMON_TRAINING, select_arms
from sgma_hf.comparison.arms.full_pass import FullPassForSemanticSegmentation
from sgma_hf.comparison.card.experiments import group_runs
from sgma_hf.comparison.card.figures import figures_of
from sgma_hf.comparison.compared_rows import content_fingerprint, decoded_rows, load_metadata
from sgma_hf.comparison.identity import is_recorded
from sgma_hf.comparison.kept_models import model_folder
from sgma_hf.comparison.runs import (
    Run,
    RunSettings,
    build_model,
    execute_run,
    finite,
    giga_macs,
    pretrained_config,
)
from sgma_hf.data.processor_fitting import fit_processor
from sgma_hf.evaluation.metrics import segmentation_scores
from sgma_hf.training.arguments import SgmaTrainingArguments
from sgma_hf.training.fine_tuning.encoder_arguments import encoder_from_text


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "demo")


def test_arms_are_what_their_names_say(scenes):
    metadata = load_metadata(scenes)
    models = {name: build_model(arm, RunSettings(**TINY), metadata) for name, arm in ARMS.items()}
    networks = [name for name, model in models.items() if isinstance(model, FullPassForSemanticSegmentation)]
    assert networks == ["early", "early_less_dropout", "segformer", "upernet", "ltae", "monthly_mean"]
    with_branch = {name for name, model in models.items() if model.config.mas_loss_weight}
    assert {"mean_mas", "projector_mean_single", "sgma", "sgma_no_dropout", "sgma_row_sampling"} <= with_branch
    assert not {"mean", "mean_no_dropout", "early", "projector_mean", "sgf"} & with_branch
    assert models["mean_mas"].config.fusion == models["mean"].config.fusion == "mean"
    assert models["projector_mean"].config.fusion == "projector_mean"
    assert models["sgma"].config.fusion == models["sgf"].config.fusion
    assert models["sgma_own_encoders"].config.encoder_groups == [[name] for name in metadata.modalities]
    assert models["sgma_own_encoders"].sgma.encoder_channels() == metadata.modality_channels
    trainings = {name: COMMON_TRAINING | arm.training for name, arm in ARMS.items()}
    without_dropout = {name for name, training in trainings.items() if training["modality_dropout"] == [0.0]}
    with_subsets = {name for name, model in models.items() if "subset" in model.config.loss_terms}
    assert with_subsets == {"projector_mean_subsets", "sgma_subsets", "sgma_subsets_filter"}
    assert without_dropout == {"mean_no_dropout", "sgma_no_dropout"} | with_subsets
    with_filter = {name for name, model in models.items() if "filter" in model.config.loss_terms}
    assert with_filter == {"sgma_subsets_filter", "sgma_filter"}
    row_sampling = {name for name, training in trainings.items() if training["robustness_sampling"]}
    assert row_sampling == {"sgma_row_sampling", "sgma_recipe", "sgma_subsets"} | with_filter
    default = SgmaTrainingArguments(output_dir="unused", use_cpu=True, report_to="none")
    less_dropout = {name for name, training in trainings.items() if training["modality_dropout"] == [0.3]}
    assert {name for name in ARMS if name.endswith("less_dropout")} == less_dropout - {"sgma_filter", "sgma_recipe"}
    recipe = trainings["sgma_recipe"]
    assert recipe == {name: getattr(default, name) for name in recipe}


def test_a_pretrained_encoder_keeps_its_bands_in_every_modality(scenes, tmp_path):
    backbone = AutoBackbone.from_config(CONFIG_MAPPING["pvt_v2"](**{**TINY["backbone_config"], "num_channels": 3}))
    backbone.save_pretrained(tmp_path)
    settings = RunSettings(**TINY | {"backbone": str(tmp_path), "backbone_config": pretrained_config(str(tmp_path))})
    model = build_model(ARMS["sgma_own_encoders"], settings, load_metadata(scenes))
    weights = backbone.state_dict()
    for encoder in model.sgma.backbones:
        assert all(torch.equal(weights[name], value) for name, value in encoder.state_dict().items())


def test_all_takes_every_arm_and_no_two_are_the_same():
    arms = select_arms(["all"])
    definitions = [arm.definition() for arm in arms]
    assert all(definition not in definitions[:index] for index, definition in enumerate(definitions))
    assert list(ARMS) == [arm.name for arm in arms]
    assert [arm.name for arm in select_arms(["sgma", "mean"])] == ["sgma", "mean"]


@pytest.mark.parametrize("names", [["sgma", "best"], ["sgma", "sgma"], ["all", "sgma"], []])
def test_unknown_and_repeated_arms_are_refused(names):
    with pytest.raises(ValueError, match="arms"):
        select_arms(names)
    with pytest.raises(ValueError, match=r"There is no arm 'sgma_recepie'; did you mean sgma_recipe\? The arms are"):
        select_arms(["sgma_recepie"])


def test_run_describes_itself_and_its_figures(scenes):
    settings = RunSettings(**TINY)
    run = Run(ARMS["sgma"], 0, scenes, settings)
    row = execute_run(run)
    assert (row["arm"], row["seed"], row["checkpoint"]) == ("sgma", 0, "last step")
    assert row["dataset"]["name"] == "demo"
    assert row["dataset"]["fingerprint"] == content_fingerprint(scenes)
    assert row["dataset"]["rows"]["train"] == {"count": 7, "per_modality": [5, 7, 6]}
    assert {"sgma_hf", "torch", "transformers", "python"} <= set(row["versions"])
    assert row["hardware"]["threads"] == 1
    assert set(row["seconds"]) == {"load", "train", "evaluate"}
    assert set(row["losses"]) == {"loss", "loss_sgf", "loss_mas"}
    assert set(row["results"]) == {"test", "validation"}
    scores = row["results"]["test"]
    miou = [entry["miou"] for entry in scores["combinations"].values()]
    assert len(miou) == 7 and all(len(entry["iou"]) == 5 for entry in scores["combinations"].values())
    assert scores["average_miou"] == pytest.approx(np.mean(miou))
    assert (scores["top1_miou"], scores["last1_miou"]) == (max(miou), min(miou))
    weights = np.array([0.8 * 0.04] * 3 + [0.64 * 0.2] * 3 + [0.512]) / (1 - 0.008)
    assert scores["bernoulli_miou"]["0.2"] == pytest.approx(weights @ miou)
    assert scores["windows"] == 4  # one row of 64 pixels in windows of the crop's size
    tiles = scores["tiles"]
    assert len(tiles["ids"]) == 1 and tiles["confusion"].keys() == scores["combinations"].keys()
    for name, matrices in tiles["confusion"].items():
        again = segmentation_scores(np.array(matrices).sum(0).reshape(5, 5))
        assert again == {key: scores["combinations"][name][key] for key in again}
    assert is_recorded(run.identity(row["dataset"]["fingerprint"]), [row])
    for other in (
        Run(ARMS["sgma"], 1, scenes, settings),
        Run(ARMS["sgf"], 0, scenes, settings),
        Run(ARMS["sgma"], 0, scenes, RunSettings(**TINY | {"max_steps": 3})),
        Run(ARMS["sgma"], 0, scenes, RunSettings(**TINY, missing={"rgb": 0.5})),
        Run(ARMS["sgma"], 0, scenes, RunSettings(**TINY, dice_loss_weight=0.25)),
    ):
        assert not is_recorded(other.identity(row["dataset"]["fingerprint"]), [row])
    assert not is_recorded(run.identity("0" * 16), [row])
    identity = run.identity(row["dataset"]["fingerprint"])
    assert not is_recorded(identity | {"model_config": row["model_config"] | {"dice_loss_weight": 0.5}}, [row])
    assert {"weight_decay", "warmup_steps", "sampling_hardness", "noise_std"} <= set(row["training_arguments"])
    changed = identity["training_arguments"] | {"warmup_steps": 0.1}
    assert not is_recorded(identity | {"training_arguments": changed}, [row])
    # A line of a version that had no dates yet: they count as the defaults.
    earlier = {key: value for key, value in identity["training_arguments"].items() if not key.startswith("date_")}
    assert len(earlier) == len(identity["training_arguments"]) - 3
    assert is_recorded(identity, [row | {"training_arguments": earlier}])
    assert len(group_runs([row, row | {"seed": 1, "training_arguments": earlier}])) == 1
    other = identity["training_arguments"] | {"date_dropout": 0.1}
    assert not is_recorded(identity | {"training_arguments": other}, [row | {"training_arguments": earlier}])

    again = execute_run(run)
    assert again["results"] == row["results"] and again["losses"] == row["losses"]
    torch.rand(3)  # what happened before does not matter
    different = execute_run(Run(ARMS["sgma"], 1, scenes, settings))
    assert different["losses"] != row["losses"]


@pytest.mark.parametrize("arm", ["mean_no_dropout", "early", "segformer", "upernet", "sgma_row_sampling"])
def test_other_arms_run_with_the_same_code(scenes, arm):
    row = execute_run(Run(ARMS[arm], 0, scenes, RunSettings(**TINY)))
    assert len(row["results"]["test"]["combinations"]) == 7
    assert ("loss_mas" in row["losses"]) == (arm == "sgma_row_sampling")
    assert row["gmacs"] > 0 and row["parameters"] > 10_000


def test_heights_are_measured_above_the_ground_of_crops_as_in_training(scenes, monkeypatch):
    """32 of 64 pixels a side; the data set is a little hilly, so heights above a whole tile's ground are larger."""
    fitted = []
    monkeypatch.setattr(runs, "fit_processor", lambda *a, **k: fitted.append(fit_processor(*a, **k)) or fitted[-1])
    execute_run(Run(ARMS["mean"], 0, scenes, RunSettings(**TINY)))
    metadata = load_metadata(scenes)
    rows = decoded_rows(scenes, "train", metadata, max_gigabytes=1)
    options = {"nodata": metadata.nodata, "num_labels": 5}
    whole = fit_processor(rows, metadata.modalities, metadata.modality_channels, crop_size=None, **options)
    (height,), (height_of_whole,) = fitted[0].image_mean[1], whole.image_mean[1]
    assert 0 < height < height_of_whole - 0.1  # metres
    assert fitted[0].image_mean[0] == whole.image_mean[0]  # colours have no level


def test_extras_are_kept_where_asked_for(scenes):
    chosen = load_metadata(scenes).class_names[1:3]
    run = Run(ARMS["early"], 0, scenes, RunSettings(**TINY, reliance=True, score_classes=chosen))
    row = execute_run(run)
    for scores in row["results"]["test"]["combinations"].values():
        assert scores["miou"] == pytest.approx(np.mean(scores["iou"][1:3]))
    other = row | {"settings": row["settings"] | {"score_classes": None}}
    first, second = group_runs([row, other])  # figures of other means stand in another table
    assert len(first.tiles["early"][0]) == len(row["results"]["test"]["tiles"]["ids"])
    with pytest.raises(ValueError, match="the line was changed"):
        _ = second.tiles
    plain = Run(ARMS["early"], 0, scenes, RunSettings(**TINY, reliance=True)).identity("f")
    assert not is_recorded(plain, [row]) and is_recorded(run.identity(row["dataset"]["fingerprint"]), [row])
    assert model_folder("kept", plain) == model_folder("kept", run.identity("f"))
    assert row["reliance"]["modalities"] == ["rgb", "dsm", "nir"]
    assert "corruptions" not in row and set(row["seconds"]) == {"load", "train", "evaluate", "reliance"}


def test_curves_of_learning_do_not_change_what_is_learned(scenes):
    settings = TINY | {"max_steps": 8}  # two epochs
    plain = execute_run(Run(ARMS["sgma"], 0, scenes, RunSettings(**settings)))
    curved = Run(ARMS["sgma"], 0, scenes, RunSettings(**settings, curve_points=3))
    row = execute_run(curved)
    assert row["results"] == plain["results"] and row["losses"] == plain["losses"]
    assert is_recorded(curved.identity(row["dataset"]["fingerprint"]), [plain])  # it would not be trained again
    assert [entry["step"] for entry in row["dynamics"]["evaluations"]] == [3, 6, 8]
    last = row["dynamics"]["evaluations"][-1]["scores"]
    chosen = row["results"]["validation"]
    assert last["average_miou"] == pytest.approx(chosen["average_miou"]) and len(row["dynamics"]["epochs"]) == 2
    assert plain["dynamics"]["evaluations"] == [] and plain["dynamics"]["steps"] == row["dynamics"]["steps"]
    (experiment,) = group_runs([plain, row])
    figures = figures_of(experiment)
    titles = [axes.get_title() for axes in figures["dynamics_sgma"].axes]
    assert {"Training loss", "Validation mIoU", "Robustness"} < set(titles)
    loss, average, *_ = figures["learning"].axes
    assert loss.lines[0].get_ydata() == pytest.approx([entry["loss"] for entry in row["dynamics"]["steps"]])
    assert average.lines[0].get_xdata() == pytest.approx([3, 6, 8])
    assert average.lines[0].get_ydata()[-1] == pytest.approx(chosen["average_miou"])


def test_rows_made_incomplete_are_the_same_every_time_and_keep_a_modality(scenes):
    metadata = load_metadata(scenes)
    complete = decoded_rows(scenes, "train", metadata, max_gigabytes=1)
    first, second = (
        decoded_rows(scenes, "train", metadata, max_gigabytes=1, missing={"rgb": 1.0, "dsm": 1.0}) for _ in range(2)
    )
    lost = [[row[name] is None for name in metadata.modalities] for row in first]
    assert lost == [[row[name] is None for name in metadata.modalities] for row in second]
    assert len(first) == len(complete) and not any(map(all, lost))
    assert sum(row["rgb"] is None for row in first) > sum(row["rgb"] is None for row in complete)
    alone = [row for row in first if row["nir"] is None]  # one row of the scenes lacks it already
    assert all((row["rgb"] is None) != (row["dsm"] is None) for row in alone)


def test_fingerprint_follows_the_rows_and_not_the_card(scenes, tmp_path):
    before = content_fingerprint(scenes)
    again = write_scenes(tmp_path / "again")
    assert content_fingerprint(again) == before
    (tmp_path / "again" / "README.md").write_text("another card")
    assert content_fingerprint(again) == before
    metadata = tmp_path / "again" / "sgma_dataset.json"
    metadata.write_text(metadata.read_text().replace('"tree"', '"shrub"'))
    assert content_fingerprint(again) != before


def test_wrong_input_is_refused_before_any_training(scenes, tmp_path):
    metadata = load_metadata(scenes)
    with pytest.raises(ValueError, match="no split 'night'"):
        decoded_rows(scenes, "night", metadata, max_gigabytes=1)
    with pytest.raises(ValueError, match="no column 'eroded' of labels"):
        decoded_rows(scenes, "test", metadata, max_gigabytes=1, label_column="eroded")
    with pytest.raises(ValueError, match="take more than 1e-05 GB"):
        decoded_rows(scenes, "train", metadata, max_gigabytes=1e-5)
    with pytest.raises(ValueError, match="thermal"):
        decoded_rows(scenes, "train", metadata, max_gigabytes=1, missing={"thermal": 0.5})
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_metadata(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="class names"):
        load_metadata(str(tmp_path))
    metadata.class_names, metadata.palette = [], []
    metadata.save(tmp_path)
    with pytest.raises(ValueError, match="class names"):
        load_metadata(str(tmp_path))
    with pytest.raises(ValueError, match="no Parquet"):
        content_fingerprint(str(tmp_path))
    for wrong in (
        {"max_steps": 0},
        {"curve_points": 5},
        {"learning_rate": 0.0},
        {"report_split": "train"},
        {"report_split": "val", "choosing_split": "validation"},
        {"device": "tpu"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RunSettings(**wrong)
    for text in ("nothing.json", "{}", '{"hidden_sizes": [1]}'):
        with pytest.raises(ValueError, match="model_type"):
            encoder_from_text(text)
    assert encoder_from_text("pvt_v2_b0")["model_type"] == "pvt_v2"
    assert encoder_from_text('{"model_type": "resnet"}') == {"model_type": "resnet"}


def test_multiply_accumulates_are_counted_by_hand():
    model = torch.nn.Conv2d(2, 3, 3, padding=1)
    model.config, model.device = SimpleNamespace(modality_channels=[1, 1]), "cpu"
    assert giga_macs(model, 8) == pytest.approx(8 * 8 * 2 * 3 * 9 / 1e9)


def test_figures_that_json_has_not_are_none():
    assert finite({"a": [float("nan"), 1.5], "b": (float("inf"), True)}) == {"a": [None, 1.5], "b": [None, True]}
