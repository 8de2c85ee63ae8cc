"""Figures of the results card."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from comparison_fixtures import FLAGS, made_up_run, made_up_tiles, write_scenes
from figure_checks import assert_legible, written
from PIL import Image

from sgma_hf.commands import compare, results_card
from sgma_hf.comparison.card.experiments import group_runs
from sgma_hf.comparison.card.figures import figures_of
from sgma_hf.comparison.card.model_figures import look, model_figures_of, principal_axes
from sgma_hf.comparison.kept_models import load_kept, model_folder
from sgma_hf.comparison.run_records import read_rows
from sgma_hf.data.rows import decode_row, load_rows
from sgma_hf.evaluation.metrics import confusion_matrix, segmentation_scores


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
    assert results_card.main([*arguments, "--figures", str(folder)]) == 0
    names = ["combinations.png", "confusion.png", "critical_difference.png"]
    assert [str(folder / name) for name in names] == capsys.readouterr().out.split()
    for name in names:
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 100 and picture.getpixel((0, 0))[:3] == (255, 255, 255)
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert results_card.main([*arguments, "--figures", str(tmp_path / "two")]) == 0
    assert {path.name[:2] for path in (tmp_path / "two").iterdir()} == {"1_", "2_"}
    capsys.readouterr()
    for flags, message in (
        ([], "Nothing is to be written"),
        (["--models", str(tmp_path), "--figures", str(folder)], "give their folder by `--dataset`"),
        (["--rows", "a", "--figures", str(folder)], "give their folder by `--models`"),
    ):
        assert results_card.main([*arguments, *flags]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Scenes, lines and kept models of three arms that were hardly trained."""
    folder = tmp_path_factory.mktemp("kept")
    scenes = write_scenes(folder / "scenes")
    flags = ["--dataset", scenes, "--output", str(folder / "lines.jsonl"), "--keep_models", str(folder / "models")]
    arms = ["--arms", "sgma", "early", "projector_mean", "--seeds", "0"]
    assert compare.main([*flags, *arms, *FLAGS, "--max_steps", "1"]) == 0
    return folder


@pytest.mark.long
def test_maps_are_those_that_were_scored(kept):
    (experiment,) = group_runs(read_rows(kept / "lines.jsonl"))
    figures = model_figures_of(experiment, str(kept / "models"), str(kept / "scenes"))
    assert list(figures) == ["rows_1", "features"]  # one row to test
    for figure in figures.values():
        assert_legible(figure)
    (row,) = load_rows(kept / "scenes", "test")
    _, label = decode_row(row, [])
    for arm, runs in experiment.runs.items():
        model, processor, _ = load_kept(model_folder(kept / "models", runs[0]), "cpu")
        (maps,) = look(model, processor, [row], experiment.settings["crop_size"]).maps
        for names, ids in maps.items():
            counts = confusion_matrix(np.where(label == 255, 0, ids).astype(np.int64), label.astype(np.int64), 5)
            assert counts.flatten().tolist() == experiment.results(runs[0])["tiles"]["confusion"][names][0], (
                arm,
                names,
            )
    titles = [axes.get_title() for axes in figures["features"].axes]
    assert titles == [f"{arm}, stage {stage}" for arm in ("projector_mean", "sgma") for stage in (1, 2, 3, 4)]
    assert "prototype" in [text.get_text() for text in figures["features"].legends[0].get_texts()]


@pytest.mark.long
def test_command_draws_what_kept_models_predict(kept, tmp_path, capsys):
    flags = ["--results", str(kept / "lines.jsonl"), "--figures", str(tmp_path / "figures")]
    flags += ["--models", str(kept / "models"), "--dataset"]
    (row,) = load_rows(kept / "scenes", "test")
    assert results_card.main([*flags, str(kept / "scenes"), "--rows", row["id"]]) == 0
    assert {"rows_1.png", "features.png"} < {path.name for path in (tmp_path / "figures").iterdir()}
    other = write_scenes(tmp_path / "other" / "scenes")
    Path(other, "sgma_dataset.json").write_text(Path(other, "sgma_dataset.json").read_text() + "\n")
    capsys.readouterr()
    for words, message in (
        ([str(kept / "scenes"), "--rows", "nothing"], "There is no labelled row 'nothing'; there are 1"),
        ([other], "are not those that the runs were on"),
        ([str(kept / "scenes"), "--models", str(tmp_path)], "holds no model of these runs"),
    ):
        assert results_card.main([*flags, *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_principal_axes_are_those_of_the_covariance():
    vectors = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5, 1, 3, 1, 1])
    axes, center = principal_axes(vectors + 7)
    values, expected = np.linalg.eigh(np.cov((vectors + 7).double().numpy().T))
    np.testing.assert_allclose(np.abs(axes.numpy()), np.abs(expected[:, [-1, -2]]), atol=1e-5)
    assert axes[:, 0].abs().argmax() == 1 and axes[1, 0] > 0 and axes[3, 1] > 0
    torch.testing.assert_close(center, (vectors + 7).mean(0))
    points = ((vectors + 7 - center) @ axes).numpy()
    np.testing.assert_allclose(points.var(0, ddof=1), values[[-1, -2]], rtol=1e-4)


@pytest.mark.long
def test_another_process_reads_kept_models_of_other_networks(kept):
    (folder,) = (kept / "models").glob("early-0-*")
    code = "import sys; from pathlib import Path; from sgma_hf.comparison.kept_models import load_kept\n"
    code += "print(load_kept(Path(sys.argv[1]), 'cpu')[0].config.arm)"
    run = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert run.stdout.split() == ["early"], run.stderr
