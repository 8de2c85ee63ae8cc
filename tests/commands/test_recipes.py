"""Recipes: what they hold, how they become flags, and what is refused."""

import math

import pytest
from tiny_runs import refusal

from sgma_hf.commands.recipes import MEASURED, SECTIONS, STATUSES, Recipe, recipe_names
from sgma_hf.commands.train import main, parse_arguments


NAMES = ["deliver_paper", "dfc2023_paper", "potsdam_paper", "vaihingen"]
CPU = ["--dataset", "d", "--output_dir", "o", "--bf16", "false", "--use_cpu"]


def test_the_recipes_are_those_that_are_known():
    assert recipe_names() == NAMES
    assert Recipe.read("potsdam").name == "potsdam_paper"


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_has_a_status(name):
    recipe = Recipe.read(name)
    for section in SECTIONS:
        assert recipe.content[section]
        for key, entry in recipe.content[section].items():
            assert entry["status"] in STATUSES, (section, key)
            assert set(entry) <= {"value", "status", "note"}


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_arguments_of_train(name):
    arguments, training = parse_arguments(["--recipe", name, *CPU])
    values = Recipe.read(name).values("train")
    assert (arguments.modalities, arguments.backbone) == (values["modalities"], ["OpenGVLab/pvt_v2_b2"])
    assert (training.learning_rate, training.weight_decay, training.adam_epsilon) == (6e-5, 1e-2, 1e-8)
    assert (training.num_train_epochs, training.lr_scheduler_kwargs, training.warmup_steps) == (
        200,
        {"power": 0.9},
        0.05,
    )
    assert (arguments.modality_adapter_size, arguments.dice_loss_weight, training.robustness_sampling) == (0, 0, False)


def test_flags_win_wherever_they_stand():
    for argv in (["--crop_size", "64", "--recipe=potsdam"], ["--recipe", "potsdam", "--crop-size=64"]):
        arguments, training = parse_arguments([*argv, *CPU, "--modalities", "rgb"])
        assert (training.crop_size, arguments.modalities) == (64, ["rgb"])
    arguments, _ = parse_arguments(["--recipe", "potsdam", *CPU, "--backbone_config", "pvt_v2_b0"])
    assert (arguments.backbone, arguments.encoder_statistics, arguments.backbone_config) == (None, None, ["pvt_v2_b0"])


def test_a_recipe_of_ones_own_goes_on_from_another(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: potsdam_paper\ntrain:\n  learning_rate: 1e-3\n  lr_scheduler_kwargs: {power: 1.5}\n")
    arguments, training = parse_arguments(["--recipe", str(path), *CPU])
    assert (training.learning_rate, training.lr_scheduler_kwargs) == (1e-3, {"power": 1.5})
    assert arguments.backbone == ["OpenGVLab/pvt_v2_b2"]
    Recipe.read(str(path)).save(tmp_path / "copy.yaml")
    copy = Recipe.read(str(tmp_path / "copy.yaml"))
    assert copy.values("train") == Recipe.read(str(path)).values("train") and "base" not in copy.content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("trian:\n  crop_size: 8\n", "has trian, which is none of .*; did you mean train?"),
        ("train:\n  crop_sise: 8\n", "there is no flag --crop_sise; did you mean --crop_size?"),
        ("train: 8\n", "train holds names with their values"),
        ("converter: [a]\n", "converter holds text alone"),
        ("base: other.yaml\n", "base is other.yaml; expected one of deliver_paper"),
        ("card: {tag: x}\n", "card has tag, which is none of license, tags; did you mean tags?"),
        ("reported: {combinations: 80}\n", "combinations holds no names with their scores."),
        ("reported: {average: high}\n", "average is 'high'; expected a number."),
        ("cost: {train_rows: 8}\n", "gmacs_per_row is None; expected a number."),
        ("- 8\n", "holds no names of arguments with their values"),
        ("train: {", "cannot be read"),
        ("base: potsdm\n", "There is no recipe potsdm; did you mean potsdam_paper?"),
    ],
)
def test_what_is_no_recipe_is_refused_in_a_line(tmp_path, capsys, content, message):
    (tmp_path / "mine.yaml").write_text(content)
    line = refusal(main, ["--recipe", str(tmp_path / "mine.yaml"), *CPU], capsys)
    for part in message.split(".*"):
        assert part in line


def test_a_recipe_that_is_not_there_is_named(capsys):
    line = refusal(main, ["--recipe", "potsdam_papre", *CPU], capsys)
    assert line.startswith(
        "sgma-hf train: There is no recipe potsdam_papre; did you mean potsdam_paper? There are deliver"
    )
    assert "--recipe names no recipe" in refusal(main, [*CPU, "--recipe"], capsys)


def test_changes_name_a_section_and_a_value():
    recipe = Recipe.read("potsdam").changed(["train.max_steps=3", "train.modalities=rgb nir", "card.tags="])
    train = recipe.values("train")
    assert (train["max_steps"], train["modalities"], recipe.values("card")) == ("3", ["rgb", "nir"], {})
    assert "backbone" not in Recipe.read("potsdam").changed(["train.backbone_config=pvt_v2_b0"]).values("train")
    for change, message in (
        ("train.x", "SECTION.NAME=VALUE"),
        ("trian.x=1", "did you mean train?"),
        ("x=1", "expected"),
        ("card.tag=a", "mean tags?"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe.changed([change])


def test_costs_follow_from_the_measured_step_by_hand():
    assert Recipe.read("potsdam").steps() == 432 * 200
    hours, gigabytes = Recipe.read("potsdam").computed_cost()
    assert math.isclose(hours, 86400 * 0.134 / 3600) and math.isclose(gigabytes, 17.8)
    # four modalities of four times the pixels, two rows of eight at a time
    hours, gigabytes = Recipe.read("deliver").computed_cost()
    assert math.isclose(hours, 498 * 200 * 0.134 * 608.5 / 78.8 / 3600) and math.isclose(gigabytes, 17.8 * 4 / 3)
    # two modalities: the host still has as much to do
    assert math.isclose(Recipe.read("vaihingen").computed_cost()[0], 43 * 200 * 0.134 / 3600)
    assert Recipe.read("vaihingen").changed(["train.crop_size="]).computed_cost() is None
    assert Recipe.read("vaihingen").changed(["evaluate.split=train"]).computed_cost() is not None


@pytest.mark.long
@pytest.mark.parametrize("name", ["potsdam_paper", "vaihingen", "dfc2023_paper"])
def test_multiply_accumulates_are_those_of_the_model(name):
    from sgma_hf import SgmaConfig, SgmaForSemanticSegmentation
    from sgma_hf.comparison.runs import giga_macs
    from sgma_hf.training import PVT_V2_SIZES

    recipe = Recipe.read(name)
    modalities = recipe.values("train")["modalities"]
    config = SgmaConfig(
        modalities=modalities,
        modality_channels=[3 if modality in ("rgb", "irrg") else 1 for modality in modalities],
        num_labels=2 if name == "dfc2023_paper" else 5,
        backbone_config={"model_type": "pvt_v2", **PVT_V2_SIZES["pvt_v2_b2"]},
        modality_adapter_size=0,
    )
    counted = giga_macs(SgmaForSemanticSegmentation(config), 512)
    assert math.isclose(counted, float(recipe.content["cost"]["gmacs_per_row"]), rel_tol=1e-3)
    assert MEASURED["gmacs"] == 8 * float(Recipe.read("potsdam").content["cost"]["gmacs_per_row"])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "vaihingen"])
def test_reported_figures_add_up(name):
    reported = Recipe.read(name).content["reported"]
    scores = [float(score) for score in reported.get("combinations", {}).values()]
    if scores:
        assert len(scores) == 7 and abs(sum(scores) / 7 - float(reported["average"])) < 0.01
        assert min(scores) == float(reported["last1"])


def test_the_page_of_the_recipes_is_that_of_their_files():
    import importlib.util
    from pathlib import Path

    path = Path(__file__).resolve().parents[2] / "docs" / "make_recipes.py"
    specification = importlib.util.spec_from_file_location("make_recipes", path)
    make_recipes = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(make_recipes)
    assert make_recipes.PAGE.read_text(encoding="utf-8") == make_recipes.page(), "run `make docs`"
    research = path.with_name("research.md").read_text(encoding="utf-8")
    reported = Recipe.read("potsdam").content["reported"]
    assert f"| {reported['average']} | {reported['last1']} |" in research
    assert all(f" {score} |" in research for score in reported["combinations"].values())
