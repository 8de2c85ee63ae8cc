"""The results card: every figure of it, worked by hand."""

import json

import pytest
from comparison_fixtures import made_up_run

from sgma_hf.commands import results_card as command
from sgma_hf.comparison.experiments import group_runs
from sgma_hf.comparison.paired_statistics import PairedDifference, paired_difference, spread
from sgma_hf.comparison.report import results_card
from sgma_hf.evaluation.corruption_scores import ALL_MODALITIES


def three_seeds():
    """SGMA 60, 62, 64 against mean fusion 50, 53, 53 and early fusion 62, 60, 64."""
    figures = {"sgma": (0.60, 0.62, 0.64), "mean": (0.50, 0.53, 0.53), "early": (0.62, 0.60, 0.64)}
    return [made_up_run(arm, seed, value) for arm, values in figures.items() for seed, value in enumerate(values)]


def test_spread_and_paired_interval_by_hand():
    assert spread([2.0, 4.0, 9.0]) == (5.0, pytest.approx(13**0.5), 3)  # squares 9 + 1 + 16, divided by 2
    assert spread([2.0]) == (2.0, None, 1)
    assert spread([]) is None and spread([1.0, None]) is None
    # differences 10, 9, 11: deviation 1; 4.303 / sqrt(3) = 2.4843
    found = paired_difference({0: 60.0, 1: 62.0, 2: 64.0, 9: 1.0}, {2: 53.0, 1: 53.0, 0: 50.0, 7: 2.0})
    assert found == (10.0, pytest.approx(2.4843, abs=1e-4), 3)
    assert found.verdict == "ahead"
    assert paired_difference({0: 1.0}, {0: 3.0}) == PairedDifference(-2.0, None, 1)
    assert paired_difference({0: 1.0}, {0: 3.0}).verdict == "open"
    assert paired_difference({0: 1.0}, {1: 3.0}) is None
    assert PairedDifference(-2.0, 1.0, 3).verdict == "behind"
    assert PairedDifference(-1.0, 1.5, 3).verdict == "open"
    many = paired_difference({seed: float(seed % 2) for seed in range(60)}, dict.fromkeys(range(60), 0.0))
    # beyond the table, its last quantile: 2.042 * 0.504219 / sqrt(60)
    assert many.half_width == pytest.approx(2.042 * (0.25 * 60 / 59) ** 0.5 / 60**0.5)


def test_card_holds_the_hand_worked_figures():
    card = results_card(three_seeds())
    # Average 62 ± 2; mean 52 ± sqrt(3) = 1.7; combinations a 30 ± 0 and b as Average
    assert "| `sgma` | 30.0 ± 0.0 | 62.0 ± 2.0 | 70.0 ± 0.0 | 62.0 ± 2.0 | 30.0 ± 0.0 | 70.0 ± 0.0 |" in card
    assert "| `mean` | 30.0 ± 0.0 | 52.0 ± 1.7 | 70.0 ± 0.0 | 52.0 ± 1.7 |" in card
    assert "| `mean` | **+10.0 [+7.5, +12.5]** | +0.0 [+0.0, +0.0] | +0.0 [+0.0, +0.0] | 3 |" in card
    # early: differences -2, 2, 0: 0 ± 4.303 * 2 / sqrt(3)
    assert "| `early` | +0.0 [-5.0, +5.0] |" in card
    # pointwise_mean - early: -12, -7, -11: -10 ± 4.303 * sqrt(7) / sqrt(3) = 6.57
    pointwise = [
        made_up_run("pointwise_mean", run["seed"], value)
        for run, value in zip(three_seeds()[3:6], (0.5, 0.53, 0.53), strict=True)
    ]
    parts = results_card(three_seeds() + pointwise)
    assert "| late instead of early fusion: `pointwise_mean` − `early` | **-10.0 [-16.6, -3.4]** |" in parts
    assert "| weights of each modality's own: `pointwise_mean` − `mean` | +0.0 [+0.0, +0.0] |" in parts
    assert "| `sgma` | 60.0 ± 0.0 | 80.0 ± 0.0 |" in card  # per class, of a+b
    assert "| `sgma` | 2,014,819 | 0.305 | 180 ± 0 | 20 ± 0 |" in card
    assert "| rows of train | 7: a 7, b 5 |" in card and "rows of validation" not in card
    assert "the weights are those of the last step" in card and "On the choosing split" not in card
    assert "| hardware | CPU (imagined), 1 thread(s), 2 cores |" in card and "| commit | 0000000000 |" in card
    assert "| versions | sgma_hf 0.1.0, torch 2.13.0 |" in card
    assert "| runs | 9, 0.5 hours |" in card  # 9 times 200 seconds
    assert "nan" not in card and "None" not in card


def _matrix(rows):
    """Lines of the matrix by arm: wins / ties / losses and above, by score."""
    section = results_card(rows).split(" Wins, ties, losses\n")[1].split("\n\n")[1]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()[2:]]
    return {arm.strip("`"): figures for arm, *figures in cells}


def test_matrix_counts_wins_ties_and_losses():
    found = _matrix(three_seeds())
    # Average: 10 ahead of mean, even with early; above mean alone, by 10 where deviations are 2 and 1.7
    assert found["sgma"] == ["1 / 1 / 0", "0 / 2 / 0", "0 / 2 / 0", "1 (1) of 2", "0 (0) of 2", "0 (0) of 2"]
    # early - mean: 12, 7, 11: 10 in the mean, its interval 6.6 either way
    assert found["mean"][0] == "0 / 0 / 2" and found["early"][0] == "1 / 1 / 0"
    apart = _matrix([made_up_run("sgma", 0, 0.6), made_up_run("mean", 1, 0.5)])
    assert apart["sgma"][0] == "–" and apart["sgma"][3] == "0 (0) of 0"  # no seed in common
    single = _matrix([made_up_run("sgma", 0, 0.6), made_up_run("mean", 0, 0.5)])
    assert single["sgma"][0] == "–" and single["sgma"][3] == "1 (0) of 1"  # neither interval nor deviation
    card = results_card(three_seeds())
    assert "| Last-1 | `mean` | 30.0 ± 0.0 |" in card  # the first of equals
    assert "One seed has no interval" in card and "not corrected for the number of comparisons" in card


def test_card_says_where_columns_are_scored_on_less():
    run = made_up_run("sgma", 0, 0.6)
    for name, rows, complete, share in (("a", 6, 6, 0.0), ("b", 2, 2, 0.5), ("a+b", 6, 2, None)):
        counts = {"rows": rows, "rows_complete": complete, "uncovered_share": share}
        run["results"]["test"]["combinations"][name] |= counts
    card = results_card([run])
    assert "| combination | windows, of 6 | of these with a part of it only | labelled pixels left out, % |" in card
    assert "| `b` | 2 | 0 | 50.00 |\n| `a+b` | 6 | 4 | 0.00 |\n" in card and "| `a` | 6" not in card
    assert "same pixels" not in results_card(three_seeds())


def test_runs_of_other_trainings_and_older_definitions_are_kept_apart():
    rows = three_seeds()
    rows += [made_up_run("sgma", 0, 0.4, missing={"a": 0.3}), made_up_run("mean", 0, 0.35, missing={"a": 0.3})]
    first, second = group_runs(rows)
    assert list(first.runs) == ["mean", "early", "sgma"] and list(second.runs) == ["mean", "sgma"]
    card = results_card(rows)
    assert "\n## 500 steps, missing none\n" in card and "\n## 500 steps, missing a 0.3\n" in card
    changed = made_up_run("mean", 5, 0.9, model_config={"fusion": "other"})
    (experiment,) = group_runs([*three_seeds(), changed])
    assert list(experiment.runs["mean"]) == [5] and experiment.left_out == 3
    assert "| runs left out, of arms whose definition changed since | 3 |" in results_card([*three_seeds(), changed])


def test_a_run_evaluated_twice_counts_once_with_all_its_figures():
    earlier = made_up_run("sgma", 0, 0.6, reliance={"stages": None})
    earlier["results"]["validation"] = earlier["results"]["test"]
    earlier["dataset"]["rows"]["validation"] = {"count": 3, "per_modality": [3, 3]}
    again = made_up_run("sgma", 0, 0.6, commit="1" * 40)
    (experiment,) = group_runs([earlier, again])
    run = experiment.runs["sgma"][0]
    assert run["reliance"] == {"stages": None} and set(run["results"]) == {"test", "validation"}
    card = results_card([earlier, again])
    assert "| `sgma` | `validation` | 60.0 | 30.0 | 70.0 |" in card and "| rows of validation | 3: a 3, b 3 |" in card


def test_a_run_done_again_with_other_scores_replaces_all_of_the_first():
    earlier = made_up_run("sgma", 0, 0.6, reliance={"stages": None})
    (experiment,) = group_runs([earlier, made_up_run("sgma", 0, 0.61)])
    assert "reliance" not in experiment.runs["sgma"][0] and experiment.replaced == 1
    assert "with other scores | 1 |" in results_card([earlier, made_up_run("sgma", 0, 0.61)])


def test_headings_name_what_differs():
    first, second = made_up_run("mean", 0, 0.5), made_up_run("mean", 1, 0.5)
    second["training_arguments"] = first["training_arguments"] | {"warmup_steps": 0.1}
    third = made_up_run("mean", 1, 0.5)
    third["settings"] |= {"crop_size": 64, "backbone_config": {"model_type": "resnet", "depths": [1, 2]}}
    heading = "500 steps, "
    card = results_card([first, second, third])
    assert f"{heading}crop_size 128, backbone_config model_type pvt_v2, hidden_sizes 8/8/16/16" in card
    assert "warmup_steps 0.05" in card and "warmup_steps 0.1" in card and "weight_decay 0.01," not in card
    assert f"{heading}crop_size 64, backbone_config model_type resnet, depths 1/2" in card


def test_the_highest_mean_is_over_seeds_that_all_arms_have():
    rows = [made_up_run("sgma", 0, 0.6), made_up_run("sgma", 1, 0.2), made_up_run("mean", 0, 0.5)]
    card = results_card(rows)
    assert "the seeds that all arms have (0) |" in card and "| Average | `sgma` | 60.0 |" in card
    assert "| seeds | 0, 1 (`mean` 0) |" in card
    assert "seeds that all arms have (none) |" in results_card(rows[1:])


def test_the_recipe_of_the_package_is_set_against_all_arms_too():
    rows = [made_up_run("sgma", 0, 0.6), made_up_run("sgma_recipe", 0, 0.7), made_up_run("mean", 0, 0.5)]
    card = results_card(rows)
    section = card.split("`sgma_recipe` against every other arm")[1].split("##")[0]
    assert "| `sgma` | +10.0 " in section and "| `mean` | +20.0 " in section
    assert "`sgma` against every other arm" in card
    assert "against every other arm" not in results_card(rows[2:])


def test_runs_with_and_without_a_dice_loss_stand_apart():
    without, dice = made_up_run("mean", 0, 0.5), made_up_run("mean", 0, 0.6)
    without["settings"]["dice_loss_weight"], dice["settings"]["dice_loss_weight"] = 0.0, 1.0
    first, second = group_runs([without, dice])
    assert list(first.runs["mean"]) == [0] == list(second.runs["mean"])
    text = results_card([without, dice])
    assert "## 500 steps, dice_loss_weight 0\n" in text and "## 500 steps, dice_loss_weight 1\n" in text


def scores_of(miou):
    return {"miou": miou}


def test_corruptions_and_reliance_get_their_sections():
    def damaged(clean, without, corrupted, auc):
        entry = {"clean": scores_of(clean), "corrupted": scores_of(corrupted)}
        entry["without"] = None if without is None else scores_of(without)
        entry["robustness"] = None if auc is None else {"detection_auc": {"stages": [auc] * 4, "mean": auc}}
        entry["agreement"] = None if auc is None else {"detection_auc": auc + 0.15, "window_auc": auc + 0.25}
        return entry

    noise = {
        "a": damaged(0.7, 0.5, 0.6, 0.8),
        "b": damaged(0.7, 0.6, 0.5, 0.4),
        ALL_MODALITIES: damaged(0.7, None, 0.3, None),
    }
    corruptions = {"seed": 0, "corruptions": {"noise_1": noise}}
    figures = {"correlation": -0.25, "auc": 0.75}
    stage = {"modalities": {"a": figures, "b": figures | {"correlation": 0.5}}}
    stage["classes_per_modality"] = {"a": [figures, figures], "b": [figures, figures]}
    choice = {"relied_on": {"mean": 0.66}, "chance": 0.5, "fused": 0.7, "always": {"a": 0.6, "b": 0.4}}
    reliance = {"stages": {"mean": stage}, "contested_stages": {"mean": stage}, "modalities": ["a", "b"]}
    reliance |= {"class_names": ["bare", "crop"], "choice": {"overall": choice, "classes": [choice, choice]}}
    rows = [made_up_run("sgma", 0, 0.6, corruptions=corruptions, reliance=reliance), made_up_run("mean", 0, 0.5)]
    card = results_card(rows)
    assert "| `noise_1`, all modalities | 40.0 |" in card
    assert "| `noise_1`, one modality | 15.0 |" in card  # the mean of 10 and 20
    assert "| `noise_1` | a | yes | 70.0 | 50.0 | 60.0 | 0.80 | – | – | 0.95 | 1.05 | – |" in card
    assert "| `noise_1` | b | no | 70.0 | 60.0 | 50.0 | 0.40 |" in card
    assert "| `noise_1` | all modalities | – | 70.0 | – | 30.0 | – |" in card
    assert "| prediction is better with the damaged modality than without it | 1 | 2 |" in card
    assert "| prediction is better without it | 1 | 2 |" in card
    lower = "is lower in damaged cells than in the same ones undamaged"
    assert f"| robustness {lower} | 1 | 2 |" in card and f"| agreement {lower} | 2 | 2 |" in card
    areas = "| corruption | robustness, cells | robustness, windows | agreement, cells | agreement, windows |"
    # means of 0.8 and 0.4, of 0.95 and 0.55, of 1.05 and 0.65
    assert areas in card and "| `noise_1` | 0.60 | – | 0.75 | 0.85 |" in card
    assert "| mean | a | -0.25 | 0.75 | -0.25 | 0.75 |" in card
    assert "| the mean map's correlation with a modality's errors is negative | 1 | 2 |" in card
    assert "| all | 66.0 | 50.0 | 70.0 | 60.0 | 40.0 |" in card
    better = "| the modality most relied on is right more often than always the same one |"
    assert f"{better} 2 | 2 |" in card
    # a second seed, for which nothing of this holds, and another list of corruptions
    worse = choice | {"relied_on": {"mean": 0.62}, "always": {"a": 0.64, "b": 0.4}}
    other = reliance | {"choice": {"overall": worse, "classes": [worse, worse]}}
    noise_2 = {"seed": 0, "corruptions": {"noise_2": {"a": damaged(0.7, 0.5, 0.4, 0.4)}}}
    card = results_card([*rows, made_up_run("sgma", 1, 0.6, corruptions=noise_2, reliance=other)])
    assert "Whether the maps" not in card  # neither corruption has figures of both seeds
    assert "| `noise_1`, all modalities | – |" in card and "| `noise_2`, one modality | – |" in card
    assert "| all | 64.0 ± 2.8 |" in card and "| 62.0 ± 2.8 | 40.0 ± 0.0 |" in card and f"{better} 1 | 2 |" in card


def test_command_writes_the_card_of_one_data_set(tmp_path, capsys):
    results, output = tmp_path / "results.jsonl", tmp_path / "cards" / "fields.md"
    rows = [*three_seeds(), made_up_run("sgma", 0, 0.1, name="trees")]
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--results", str(results), "--output", str(output)]
    for flags, message in (
        (arguments, "['fields', 'trees']"),
        ([*arguments, "--dataset", "sea"], "no run on 'sea'"),
        (["--results", str(tmp_path / "nothing.jsonl"), "--output", str(output)], "There is no file"),
    ):
        assert command.main(flags) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("sgma-hf results-card: ") and error.count("\n") == 1
    with pytest.raises(SystemExit, match="2"):
        command.main(["--results", str(results)])
    assert "--output" in capsys.readouterr().err
    assert not output.exists()
    assert command.main([*arguments, "--dataset", "fields"]) == 0
    assert output.read_text() == results_card(three_seeds())
    assert "9 runs" in capsys.readouterr().out
    results.write_text("")
    assert command.main(arguments) == 2 and "no run" in capsys.readouterr().err
