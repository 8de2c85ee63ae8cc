"""The results card: every figure of it, worked by hand."""

import csv
import io
import json

import pytest
from comparison_fixtures import made_up_run, made_up_tiles

from sgma_hf.commands import results_card as command
from sgma_hf.comparison.card.experiments import group_runs
from sgma_hf.comparison.card.report import make_card
from sgma_hf.evaluation.corruption_scores import ALL_MODALITIES
from sgma_hf.publishing.tables import Table, latex_table


def results_card(rows):
    return make_card(rows).markdown()


def three_seeds():
    """SGMA 60, 62, 64 against mean fusion 50, 53, 53 and early fusion 62, 60, 64."""
    figures = {"sgma": (0.60, 0.62, 0.64), "mean": (0.50, 0.53, 0.53), "early": (0.62, 0.60, 0.64)}
    return [made_up_run(arm, seed, value) for arm, values in figures.items() for seed, value in enumerate(values)]


def test_card_holds_the_hand_worked_figures():
    card = results_card(three_seeds())
    # Average 62 ± 2, its interval 4.303 * 2 / sqrt(3) = 5.0 either way; mean 52 ± sqrt(3) = 1.7; b is as Average
    assert "| `sgma` | 0, 1, 2 | 62.0 ± 2.0 | 57.0 to 67.0 | – | 30.0 ± 0.0 | 70.0 ± 0.0 | 62.0 ± 2.0 |" in card
    assert "| `mean` | 0, 1, 2 | 52.0 ± 1.7 | 47.7 to 56.3 | – | 30.0 ± 0.0 |" in card
    assert "| `sgma` | 30.0 ± 0.0 | 62.0 ± 2.0 | 70.0 ± 0.0 |" in card
    assert "unequal seeds" not in card and "several commits" not in card
    # pointwise_mean - early: -12, -7, -11: t = 10 sqrt(3) / sqrt(7) = 6.5, of two degrees of freedom p = 0.02
    pointwise = [
        made_up_run("pointwise_mean", run["seed"], value)
        for run, value in zip(three_seeds()[3:6], (0.5, 0.53, 0.53), strict=True)
    ]
    parts = results_card(three_seeds()[6:] + pointwise)
    assert (
        "| late instead of early fusion: `pointwise_mean` − `early` | -10.0 s | -16.6 to -3.4 | – | 0.0 | 0.0 |"
        in parts
    )
    assert "weights of each modality's own" not in parts
    assert "| `sgma` | 60.0 ± 0.0 | 80.0 ± 0.0 |" in card  # per class, of a+b
    assert "semantic-guided fusion and modality-aware sampling | 2,014,819 | 0.305 | 180 ± 0 | 20 ± 0 |" in card
    assert "| rows of train | 7: a 7, b 5 |" in card and "rows of validation" not in card
    assert "the weights are those of the last step" in card and "On the choosing split" not in card
    assert "| hardware | CPU (imagined), 1 thread(s), 2 cores |" in card and "| commit | 0000000000 |" in card
    assert "| versions | sgma_hf 0.1.0, torch 2.13.0 |" in card
    assert "| runs | 9, 0.5 hours |" in card  # 9 times 200 seconds
    assert "nan" not in card and "None" not in card


def lines_of(rows, name):
    """Texts of a table of one training, by the first of each line."""
    (tables,) = make_card(rows).tables.values()
    (table,) = [table for table in tables if table.name == name]
    return {line[0]: [str(cell) for cell in line[1:]] for line in table.lines}


def test_matrix_of_wins_is_corrected_for_all_its_pairs():
    # sgma - mean 10, 9, 11: t = 17.3, p = 0.0033, times 3 pairs 0.01; early - mean 12, 7, 11: p = 0.0227, times 2
    found = lines_of(three_seeds(), "wins_average")
    assert found["3. `sgma`"] == ["+10.0 s", "0.0", ""] and found["1. `mean`"] == ["", "-10.0 s", "-10.0 s"]
    assert found["2. `early`"] == ["+10.0 s", "", "0.0"]
    # a fourth arm makes six pairs: early - mean has p = 0.0227 * 4 at best
    rows = [*three_seeds(), *(made_up_run("sgf", seed, value) for seed, value in enumerate((0.61, 0.5, 0.66)))]
    found = lines_of(rows, "wins_average")
    assert found["4. `sgma`"][0] == "+10.0 s" and found["2. `early`"][0] == "+10.0"
    apart = lines_of([made_up_run("sgma", 0, 0.6), made_up_run("mean", 1, 0.5)], "wins_average")
    assert apart["2. `sgma`"] == ["–", ""]  # no seed in common
    apart = lines_of([made_up_run("pointwise_mean", 0, 0.6), made_up_run("mean", 1, 0.5)], "parts")
    assert list(apart.values()) == [["–"] * 5]
    single = lines_of([made_up_run("sgma", 0, 0.6), made_up_run("mean", 0, 0.5)], "wins_average")
    assert single["2. `sgma`"] == ["+10.0", ""] and single["1. `mean`"] == ["", "-10.0"]  # cannot be tested
    assert "wins_average" not in {table.name for table in make_card(three_seeds()[:3]).tables[""]}


def test_differences_over_tiles_are_tested_too():
    rows = [made_up_tiles(arm, seed, right) for arm, right in (("sgma", 0.9), ("mean", 0.8)) for seed in (0, 1, 2)]
    found = lines_of(rows, "wins_average")["2. `sgma`"][0]
    assert found.startswith("**+") and found.endswith(" st**")
    assert lines_of(rows[:1] + rows[3:4], "wins_average")["2. `sgma`"][0].endswith(" t")  # one seed
    average, over_seeds, over_tiles = lines_of(rows, "results")["`sgma`"][1:4]
    for interval in (over_seeds, over_tiles):
        low, high = map(float, interval.split(" to "))
        assert low < float(average.split(" ± ")[0]) < high


def test_card_says_how_the_split_was_made_and_what_is_unequal():
    rows = [made_up_run("sgma", 0, 0.6), made_up_run("sgma", 1, 0.6), made_up_run("mean", 0, 0.5, commit="1" * 40)]
    assert "Reported on `test`, 2 rows. How this split was made is not recorded." in results_card(rows)
    for row in rows:
        row["dataset"]["split_notes"] = {"test": "A random part of the training fields."}
    card = results_card(rows)
    assert "Reported on `test`, 2 rows. A random part of the training fields. **The lines are of several com" in card
    assert "**The lines have unequal seeds.**" in card
    assert "| `mean` | 0 | 1111111111 | 50.0 |" in card and "| `sgma` | 0, 1 | 0000000000 | 60.0 ± 0.0 |" in card
    assert "| how test was made | A random part of the training fields. |" in card


def test_card_says_where_columns_are_scored_on_less():
    run = made_up_run("sgma", 0, 0.6)
    for name, rows, complete, share in (("a", 6, 6, 0.0), ("b", 2, 2, 0.5), ("a+b", 6, 2, None)):
        counts = {"rows": rows, "rows_complete": complete, "uncovered_share": share}
        run["results"]["test"]["combinations"][name] |= counts
    card = results_card([run])
    assert "| combination | windows, of 6 | of these with a part of it only | labelled pixels left out, % |" in card
    assert "| `b` | 2 | 0 | 50.00 |\n| `a+b` | 6 | 4 | 0.00 |\n" in card and "| `a` | 6" not in card
    assert "scored on other pixels" not in results_card(three_seeds())


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
    # means of 0.8 and 0.4, of 0.95 and 0.55, of 1.05 and 0.65
    assert "| `sgma` | `noise_1` | 0.60 | – | 0.75 | 0.85 |" in card
    assert "| `sgma` | 2 | 1 | 1 |" in card  # better with a, and without b
    assert "| `sgma` | a | -0.25 | 0.75 | -0.25 | 0.75 |" in card
    assert "| `sgma` | 66.0 | 50.0 | 70.0 | 60.0 | 40.0 |" in card
    # a second seed, for which nothing of this holds, and another list of corruptions
    worse = choice | {"relied_on": {"mean": 0.62}, "always": {"a": 0.64, "b": 0.4}}
    other = reliance | {"choice": {"overall": worse, "classes": [worse, worse]}}
    noise_2 = {"seed": 0, "corruptions": {"noise_2": {"a": damaged(0.7, 0.5, 0.4, 0.4)}}}
    card = results_card([*rows, made_up_run("sgma", 1, 0.6, corruptions=noise_2, reliance=other)])
    assert "whether the maps notice" not in card  # neither corruption has figures of both seeds
    assert "| `noise_1`, all modalities | – |" in card and "| `noise_2`, one modality | – |" in card
    assert "| `sgma` | 64.0 ± 2.8 |" in card and "| 62.0 ± 2.8 | 40.0 ± 0.0 |" in card
    without_maps = [made_up_run("mean", 0, 0.5, reliance={"stages": None})]
    assert "robustness maps agree" not in results_card(without_maps)


def test_latex_and_csv_hold_the_figures_of_the_card():
    rows = [*three_seeds(), made_up_run("mean", 0, 0.4, missing={"a": 0.3})]
    card = make_card(rows, names=["results", "wins_average"])
    text = card.latex()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 3  # one arm has no matrix
    assert r"\texttt{sgma} & 0, 1, 2 & 62.0 $\pm$ 2.0 & 57.0 to 67.0 & -- &" in text
    assert r"3. \texttt{sgma} & +10.0 s & 0.0 &  \\" in text and r"1. \texttt{mean} &  & $-$10.0 s &" in text
    assert (
        r"\caption{500 steps, missing none. Scores. Reported on \texttt{test}" in text and r"95 \% intervals" in text
    )
    lines = list(csv.DictReader(io.StringIO(card.csv())))
    (line,) = [
        line
        for line in lines
        if (line["heading"], line["row"], line["column"]) == ("500 steps, missing none", "mean", "Average")
    ]
    assert float(line["value"]) == pytest.approx(0.52) and float(line["deviation"]) == pytest.approx(0.0003**0.5)
    assert line["count"] == "3" and line["table"] == "results"
    (line,) = [line for line in lines if (line["row"], line["column"]) == ("3. sgma", "1")]
    assert float(line["value"]) == pytest.approx(0.1) and float(line["low"]) == pytest.approx(0.1 - 0.024842, abs=1e-5)
    (mirrored,) = [line for line in lines if (line["row"], line["column"]) == ("1. mean", "3")]
    assert float(mirrored["value"]) == -float(line["value"]) and float(mirrored["high"]) == -float(line["low"])
    assert {line["value"] for line in lines if line["column"] == "seeds"} == {"0, 1, 2", "0"}
    assert r"a\_b \& \textbf{c}" in latex_table(Table("x", "X", ["a"], [["a_b & **c**"]]))
    assert r"\begin{tabular}{llrrrrrrrr}" in text
    assert r"{lp{0.5\linewidth}rr}" in latex_table(Table("x", "X", "abcd", [["a", 70 * "b", 1, 2]], text_columns=2))


def test_command_writes_the_card_of_one_data_set(tmp_path, capsys):
    results, output = tmp_path / "results.jsonl", tmp_path / "cards" / "fields.md"
    rows = [*three_seeds(), made_up_run("sgma", 0, 0.1, name="trees")]
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--results", str(results), "--output", str(output)]
    for flags, message in (
        (arguments, "['fields', 'trees']"),
        ([*arguments, "--dataset", "sea"], "no run on 'sea'"),
        (["--results", str(tmp_path / "nothing.jsonl"), "--output", str(output)], "There is no file"),
        ([*arguments, "--dataset", "fields", "--tables", "win"], "no table 'win'"),
        (["--results", str(results), "--output", "card.txt"], "ends in .md, .tex, .csv"),
    ):
        assert command.main(flags) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("sgma-hf results-card: ") and error.count("\n") == 1
    assert not output.exists()
    assert command.main([*arguments, "--dataset", "fields"]) == 0
    assert output.read_text() == results_card(three_seeds())
    out = capsys.readouterr().out
    assert "9 runs" in out and "What an added sensor brings\n| arm | split | worst pair |" in out
    for name, write in (("fields.tex", "latex"), ("fields.csv", "csv")):
        output = tmp_path / name
        flags = ["--results", str(results), "--output", str(output), "--dataset", "fields", "--tables", "results"]
        assert command.main(flags) == 0
        assert output.read_text() == getattr(make_card(three_seeds(), names=["results"]), write)()
    results.write_text("")
    assert command.main(arguments) == 2 and "no run" in capsys.readouterr().err
