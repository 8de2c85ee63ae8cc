"""Figures of the results card."""

import json

import numpy as np
from comparison_fixtures import made_up_run, made_up_tiles
from figure_checks import assert_legible, written
from PIL import Image

from sgma_hf.commands import results_card as command
from sgma_hf.comparison.card.experiments import group_runs
from sgma_hf.comparison.card.figures import figures_of
from sgma_hf.evaluation.metrics import segmentation_scores


def made_lines():
    arms = {"sgma": 0.9, "mean": 0.8, "early": 0.81}
    return [made_up_tiles(arm, seed, right) for arm, right in arms.items() for seed in (0, 1)]


def test_figures_show_what_the_lines_hold():
    rows = made_lines()
    (experiment,) = group_runs(rows)
    figures = figures_of(experiment)
    assert list(figures) == ["combinations", "confusion", "critical_difference"]
    for figure in figures.values():
        assert_legible(figure)
    average = np.mean([row["results"]["test"]["average_miou"] for row in rows[:2]])
    assert f"{100 * average:.1f}" in written(figures["combinations"])
    # the first panel of the last line: sgma, all modalities, both seeds
    counts = sum(np.sum(row["results"]["test"]["tiles"]["confusion"]["a+b"], axis=0) for row in rows[:2])
    shares = (counts.reshape(2, 2) / counts.reshape(2, 2).sum(1, keepdims=True)).flatten()
    titled = [axes for axes in figures["confusion"].axes if axes.get_title() == "all modalities"]
    assert [text.get_text() for text in titled[-1].texts] == [f"{share:.2f}" for share in shares]

    # ranks by hand: the mean over seeds and combinations of each tile's own score
    def averages(arm):
        own = [row["results"]["test"]["tiles"]["confusion"] for row in rows if row["arm"] == arm]
        scores = [
            [
                np.mean([segmentation_scores(np.reshape(tiles[tile], (2, 2)))["miou"] for tiles in one.values()])
                for tile in range(12)
            ]
            for one in own
        ]
        return np.mean(scores, axis=0)

    first, *others = map(averages, ("sgma", "mean", "early"))
    rank = 1 + np.mean([(other > first).astype(float) + (other == first) / 2 for other in others], axis=1).sum()
    assert f"sgma  {rank:.2f}" in written(figures["critical_difference"])


def test_lines_without_tiles_give_the_scores_alone():
    (experiment,) = group_runs([*made_lines(), made_up_run("sgf", 0, 0.5)])
    assert list(figures_of(experiment)) == ["combinations"]
    (experiment,) = group_runs(made_lines()[:2])
    assert list(figures_of(experiment)) == ["combinations", "confusion"]  # nothing to compare with


def test_command_draws_into_a_folder(tmp_path, capsys):
    results, folder = tmp_path / "results.jsonl", tmp_path / "figures"
    rows = [*made_lines(), made_up_tiles("mean", 0, 0.7, missing={"a": 0.3})]
    results.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    arguments = ["--results", str(results)]
    assert command.main([*arguments, "--figures", str(folder)]) == 0
    names = ["combinations.png", "confusion.png", "critical_difference.png"]
    assert [str(folder / name) for name in names] == capsys.readouterr().out.split()
    for name in names:
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 100 and picture.getpixel((0, 0))[:3] == (255, 255, 255)
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command.main([*arguments, "--figures", str(tmp_path / "two")]) == 0
    assert {path.name[:2] for path in (tmp_path / "two").iterdir()} == {"1_", "2_"}
    capsys.readouterr()
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert "Nothing is to be written" in error and error.count("\n") == 1
