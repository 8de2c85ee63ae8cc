"""The results card: every figure of it, worked by hand."""

import json

import pytest
from comparison_fixtures import made_up_run

from sgma_hf.commands import results_card as command
from sgma_hf.comparison.experiments import group_runs
from sgma_hf.comparison.paired_statistics import PairedDifference, paired_difference, spread
from sgma_hf.comparison.report import readme_block, results_card, shown, write_into_readme
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
    assert "| `mean` | +10.0 [+7.5, +12.5] | +0.0 [+0.0, +0.0] | +0.0 [+0.0, +0.0] | 3 |" in card
    # early: differences -2, 2, 0: 0 ± 4.303 * 2 / sqrt(3)
    assert "| `early` | +0.0 [-5.0, +5.0] |" in card
    # pointwise_mean - early: -12, -7, -11: -10 ± 4.303 * sqrt(7) / sqrt(3) = 6.57
    pointwise = [
        made_up_run("pointwise_mean", run["seed"], value)
        for run, value in zip(three_seeds()[3:6], (0.5, 0.53, 0.53), strict=True)
    ]
    parts = results_card(three_seeds() + pointwise)
    assert "| late instead of early fusion: `pointwise_mean` − `early` | -10.0 [-16.6, -3.4] |" in parts
    assert "| weights of each modality's own: `pointwise_mean` − `mean` | +0.0 [+0.0, +0.0] |" in parts
    assert "| `sgma` | 60.0 ± 0.0 | 80.0 ± 0.0 |" in card  # per class, of a+b
    assert "| `sgma` | 2,014,819 | 0.305 | 180 ± 0 | 20 ± 0 |" in card
    assert "`a` in 7, `b` in 5" in card
    assert "the weights are those of the last step" in card and "No other split was evaluated" in card
    assert "CPU (imagined), 1 thread(s) per run on 2 cores; commit 0000000000; sgma_hf 0.1.0, torch 2.13.0" in card
    assert "0.5 hours for 9 runs" in card  # 9 times 200 seconds
    assert "nan" not in card and "None" not in card


def test_sentences_follow_from_the_figures():
    text = shown(group_runs(three_seeds())[0])
    assert (
        "Average: `sgma` is above 1 of 2 arms in the mean over the seeds that they share, above 1 by more than either "
        "arm's standard deviation. It leads 1 (`mean`) by more than the 95 % interval, cannot be told from 1 "
        "(`early`) by an interval." in text
    )
    assert "The highest mean Last-1 is that of `mean`, 30.0 ± 0.0." in text  # the first of equals
    assert "of 3 seeds, on the same rows: they say how well so few seeds fix the mean difference" in text
    behind = [made_up_run("sgma", seed, 0.4 + 0.01 * seed) for seed in range(3)] + three_seeds()[3:6]
    assert "trails 1 (`mean`) by more than the 95 % interval" in shown(group_runs(behind)[0])
    apart = shown(group_runs([made_up_run("sgma", 0, 0.6), made_up_run("mean", 1, 0.5)])[0])
    assert "Average: `sgma` is above 0 of 0 arms" in apart and "It has no seed in common with 1 (`mean`)." in apart
    single = shown(group_runs([made_up_run("sgma", 0, 0.6), made_up_run("mean", 0, 0.5)])[0])
    assert "One seed shows neither spread nor interval" in single
    assert "leads" not in single.split("which arm leads")[0]


def test_card_says_where_columns_are_scored_on_less():
    run = made_up_run("sgma", 0, 0.6)
    older = made_up_run("mean", 0, 0.5)  # from before the shares were kept
    for line in (run, older):
        for name, rows, complete in (("a", 6, 6), ("b", 2, 2), ("a+b", 6, 2)):
            line["results"]["test"]["combinations"][name] |= {"rows": rows, "rows_complete": complete}
    assert "not all on the same pixels: `b` on 2 of 6 windows; `a+b` on 4 with a part of it only." in results_card(
        [older]
    )
    for name, share in (("a", 0.0), ("b", 0.5), ("a+b", 0.0)):
        run["results"]["test"]["combinations"][name] |= {"uncovered_share": share}
    card = results_card([run, older])
    assert (
        "`b` on 2 of 6 windows, without 50.00 % of the labelled pixels, which nothing of it covers; `a+b` on" in card
    )
    assert "scored on what there is" not in results_card(three_seeds())


def test_runs_of_other_trainings_and_older_definitions_are_kept_apart():
    rows = three_seeds()
    rows += [made_up_run("sgma", 0, 0.4, missing={"a": 0.3}), made_up_run("mean", 0, 0.35, missing={"a": 0.3})]
    first, second = group_runs(rows)
    assert list(first.runs) == ["mean", "early", "sgma"] and list(second.runs) == ["mean", "sgma"]
    card = results_card(rows)
    assert "## 500 steps, training rows as converted" in card
    assert "## 500 steps, training rows lacking `a` in 30 %" in card
    changed = made_up_run("mean", 5, 0.9, model_config={"fusion": "other"})
    (experiment,) = group_runs([*three_seeds(), changed])
    assert list(experiment.runs["mean"]) == [5] and experiment.left_out == 3
    assert "3 runs of arms whose definition changed" in results_card([*three_seeds(), changed])


def test_a_run_evaluated_twice_counts_once_with_all_its_figures():
    earlier = made_up_run("sgma", 0, 0.6, reliance={"stages": None})
    earlier["results"]["validation"] = earlier["results"]["test"]
    earlier["dataset"]["rows"]["validation"] = {"count": 3, "per_modality": [3, 3]}
    again = made_up_run("sgma", 0, 0.6, commit="1" * 40)
    (experiment,) = group_runs([earlier, again])
    run = experiment.runs["sgma"][0]
    assert run["reliance"] == {"stages": None} and set(run["results"]) == {"test", "validation"}
    card = results_card([earlier, again])
    assert "| `sgma` | `validation` | 60.0 | 30.0 | 70.0 |" in card and "3 of `validation`" in card


def test_a_run_done_again_with_other_scores_replaces_all_of_the_first():
    earlier = made_up_run("sgma", 0, 0.6, reliance={"stages": None})
    (experiment,) = group_runs([earlier, made_up_run("sgma", 0, 0.61)])
    assert "reliance" not in experiment.runs["sgma"][0] and experiment.replaced == 1
    assert "Runs done again with other scores: 1;" in results_card([earlier, made_up_run("sgma", 0, 0.61)])


def test_headings_name_what_differs():
    arguments = {"warmup_steps": 0.05, "weight_decay": 0.01, "optim": "adamw_torch"}
    arguments |= {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 0.9}}
    old, first = made_up_run("sgma", 0, 0.6), made_up_run("mean", 0, 0.5, training_arguments=arguments)
    (experiment,) = group_runs([old, first])  # the older line does not say, and counts as equal
    assert list(experiment.runs) == ["mean", "sgma"]
    card = results_card([old, first])
    assert (
        "AdamW at 0.001 (`adamw_torch`), weight decay 0.01, warm-up over 5 % of the steps, polynomial schedule of "
        "power 0.9; seed 0." in card
    )
    assert "encoder pvt_v2, hidden_sizes 8/8/16/16, depths 1/1/1/1, num_attention_heads 1/1/2/2" in card
    assert "as `SgmaTrainingArguments` of the commit has them" in results_card([old])
    second = made_up_run("mean", 1, 0.5, training_arguments=arguments | {"warmup_steps": 0.1})
    third = made_up_run("mean", 1, 0.5)
    third["settings"] |= {"crop_size": 64, "backbone_config": {"model_type": "resnet", "depths": [1, 2]}}
    heading = "500 steps, training rows as converted, "
    card, block = results_card([old, first, second, third]), readme_block([old, first, second, third])
    for text in (card, block):
        assert f"{heading}crop_size 128, backbone_config pvt_v2, hidden_sizes 8/8/16/16" in text
        assert "warmup_steps 0.05" in text and "warmup_steps 0.1" in text and "weight_decay 0.01," not in text
    assert f"{heading}crop_size 64, backbone_config resnet, depths 1/2" in card
    assert "resnet" not in block  # another model is for the card


def test_readme_block_says_what_the_first_table_shows_and_adds_incomplete_trainings():
    recipe = [made_up_run("sgma_recipe", seed, 0.53 + 0.01 * seed) for seed in range(3)]
    incomplete = made_up_run("sgma", 0, 0.4)
    incomplete["settings"] |= {"missing": {"a": 0.3}}
    block = readme_block([*three_seeds(), *recipe, incomplete])
    assert "Average: `sgma_recipe` is above 1 of 3 arms" in block and "Average: `sgma` is" not in block
    assert "The highest mean" not in block and "What each part adds" not in block  # that is for the card
    assert "training rows lacking `a` in 30 %" in block and "| `sgma` | 40.0 | 30.0 | 70.0 |" in block
    assert block.count("An encoder from random weights") == 1


def test_the_highest_mean_is_over_seeds_that_all_arms_have():
    rows = [made_up_run("sgma", 0, 0.6), made_up_run("sgma", 1, 0.2), made_up_run("mean", 0, 0.5)]
    text = shown(group_runs(rows)[0])
    assert "The highest mean Average over the seeds that all arms have (0) is that of `sgma`, 60.0." in text
    assert "seeds 0, 1 (`mean` 0)" in results_card(rows)
    assert "no seed that all arms have" in shown(group_runs(rows[1:])[0])


def test_the_recipe_of_the_package_is_set_against_all_arms_too():
    rows = [made_up_run("sgma", 0, 0.6), made_up_run("sgma_recipe", 0, 0.7), made_up_run("mean", 0, 0.5)]
    text = shown(group_runs(rows)[0])
    assert "Average: `sgma` is above 1 of 2 arms" in text and "Average: `sgma_recipe` is above 2 of 2 arms" in text
    card = results_card(rows)
    section = card.split("`sgma_recipe` against every other arm")[1].split("##")[0]
    assert "| `sgma` | +10.0 " in section and "| `mean` | +20.0 " in section
    assert "`sgma` against every other arm" in card
    assert "against every other arm" not in results_card(rows[2:])


def test_older_lines_have_the_defaults_of_fields_that_came_later():
    lacking = made_up_run("mean", 0, 0.5)
    newer = made_up_run("mean", 1, 0.5, model_config={"fusion": "sgf", "dice_loss_weight": 0.0})
    (experiment,) = group_runs([lacking, newer])
    assert list(experiment.runs["mean"]) == [0, 1] and experiment.left_out == 0
    newer["model_config"]["num_attention_heads"] = 1
    (experiment,) = group_runs([lacking, newer])
    assert list(experiment.runs["mean"]) == [1] and experiment.left_out == 1


def test_runs_with_and_without_a_dice_loss_stand_apart():
    older = made_up_run("mean", 0, 0.5)  # from before there was one: neither settings nor model name it
    without = made_up_run("mean", 1, 0.5, model_config={"fusion": "sgf", "dice_loss_weight": 0.0})
    without["settings"]["dice_loss_weight"] = 0.0
    dice = made_up_run("mean", 0, 0.6, model_config={"fusion": "sgf", "dice_loss_weight": 1.0})
    dice["settings"]["dice_loss_weight"] = 1.0
    first, second = group_runs([older, without, dice])
    assert list(first.runs["mean"]) == [0, 1] and first.settings["dice_loss_weight"] == 0.0
    assert list(second.runs["mean"]) == [0] and second.settings["dice_loss_weight"] == 1.0
    text = results_card([older, without, dice])
    assert "cross-entropy alone" in text and "cross-entropy and, with weight 1, a Dice loss" in text
    assert "dice_loss_weight 1.0" in text.split("\n## ")[2]  # in its heading: else the two would be told by nothing


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
    assert "| `noise_1` | a | 70.0 | 50.0 | 60.0 | 0.80 | – | – | 0.95 | 1.05 | – |" in card
    assert "better than without that modality in 1 of 2 cases" in card
    assert "better left out than used with these damages: b: `noise_1`." in card
    lower = "are lower in damaged cells than in the same ones undamaged, with every seed, in {} of 2 cases."
    assert f"- Maps of robustness {lower.format(1)}" in card and f"- Maps of agreement {lower.format(2)}" in card
    areas = "| corruption | robustness, cells | robustness, windows | agreement, cells | agreement, windows |"
    block = readme_block(rows)
    for text in (card, block):  # means of 0.8 and 0.4, of 0.95 and 0.55, of 1.05 and 0.65
        assert areas in text and "| `noise_1` | 0.60 | – | 0.75 | 0.85 |" in text
    assert "better left out" not in block
    assert "| mean | a | -0.25 | 0.75 | -0.25 | 0.75 |" in card
    assert "negative with every seed for 1 of 2 modalities; it goes from -0.25 to 0.50." in card
    assert (
        "is right in 66.0 %, one drawn by chance in 50.0 %, and always `a`, the best single choice, in 60.0 %" in card
    )
    assert "the maps choose better than that with every seed" in card
    # a second seed, for which nothing of this holds, and another list of corruptions
    worse = choice | {"relied_on": {"mean": 0.62}, "always": {"a": 0.64, "b": 0.4}}
    other = reliance | {"choice": {"overall": worse, "classes": [worse, worse]}}
    noise_2 = {"seed": 0, "corruptions": {"noise_2": {"a": damaged(0.7, 0.5, 0.4, 0.4)}}}
    card = results_card([*rows, made_up_run("sgma", 1, 0.6, corruptions=noise_2, reliance=other)])
    assert "Whether the maps" not in card  # neither corruption has figures of both seeds
    assert "| `noise_1`, all modalities | – |" in card and "| `noise_2`, one modality | – |" in card
    assert "is right in 64.0 ± 2.8 %" in card and "in 62.0 ± 2.8 %: the maps do not choose better" in card


def test_readme_block_is_replaced_and_nothing_else(tmp_path):
    readme = tmp_path / "README.md"
    before, after = "# Title\n<!-- measured: demo -->\nx\n<!-- end of measured -->\n", "\nrest \\1\n"
    readme.write_text(before + "<!-- measured: compare -->\n<!-- end of measured -->" + after)
    for _ in range(2):  # again, over what is there
        write_into_readme(readme, readme_block(three_seeds()))
    text = readme.read_text()
    assert text.startswith(before) and text.endswith("<!-- end of measured -->" + after)
    assert "| `sgma` | 62.0 ± 2.0 | 30.0 ± 0.0 | 70.0 ± 0.0 |" in text
    assert text.count("| `mean` |") == 1 and "seeds 0, 1, 2" in text
    readme.write_text("# Title\n")
    with pytest.raises(ValueError, match="measured: compare"):
        write_into_readme(readme, "x")


def test_command_writes_the_card_of_one_data_set(tmp_path, capsys):
    results, output = tmp_path / "results.jsonl", tmp_path / "cards" / "fields.md"
    rows = [*three_seeds(), made_up_run("sgma", 0, 0.1, name="trees")]
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--results", str(results), "--output", str(output)]
    with pytest.raises(ValueError, match=r"\['fields', 'trees'\]"):
        command.main(arguments)
    with pytest.raises(ValueError, match="no run on 'sea'"):
        command.main([*arguments, "--dataset", "sea"])
    with pytest.raises(FileNotFoundError, match="There is no file"):
        command.main(["--results", str(tmp_path / "nothing.jsonl"), "--output", str(output)])
    with pytest.raises(ValueError, match="--output"):
        command.main(["--results", str(results)])
    assert not output.exists()
    assert command.main([*arguments, "--dataset", "fields"]) == 0
    assert output.read_text() == results_card(three_seeds())
    assert "9 runs" in capsys.readouterr().out
    results.write_text("")
    with pytest.raises(ValueError, match="no run"):
        command.main(arguments)
