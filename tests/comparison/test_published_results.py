"""Published cards are computed again from the lines that lie beside them: `results/NAME.jsonl`, `results_NAME.md`."""

import json
from pathlib import Path

import numpy as np
import pytest
from comparison_fixtures import made_up_tiles

from sgma_hf.commands import results_card
from sgma_hf.comparison.identity import training_settings
from sgma_hf.comparison.run_records import read_rows


CARDS = Path(__file__).resolve().parents[2] / "model_cards"
PUBLISHED = sorted((CARDS / "results").glob("*.jsonl"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Lines and their card as they are published, of runs that nobody did."""
    folder = tmp_path_factory.mktemp("model_cards")
    arms = {"sgma": 0.9, "mean": 0.8}
    rows = [made_up_tiles(arm, seed, right) for arm, right in arms.items() for seed in (0, 1, 2)]
    (folder / "results").mkdir()
    lines = folder / "results" / "fields.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert results_card.main(["--results", str(lines), "--output", str(folder / "results_fields.md")]) == 0
    return lines


@pytest.fixture(params=["made", *PUBLISHED], ids=lambda path: getattr(path, "stem", path))
def lines(request):
    """Each file of lines that is published, and the made one."""
    return request.getfixturevalue("made") if request.param == "made" else request.param


def test_scores_follow_from_the_counts_of_the_tiles(lines):
    for row in read_rows(lines):
        for results in row["results"].values():
            average = []
            for name, tiles in results["tiles"]["confusion"].items():
                assert len(tiles) == len(results["tiles"]["ids"])
                size = len(row["dataset"]["class_names"])
                counts = np.array(tiles, dtype=np.int64).sum(0).reshape(size, size)
                iou = [
                    counts[k, k] / union if (union := counts[k].sum() + counts[:, k].sum() - counts[k, k]) else None
                    for k in range(size)
                ]
                assert results["combinations"][name]["iou"] == pytest.approx(iou, abs=1e-12)
                known = [value for value in iou if value is not None]
                average += [sum(known) / len(known)] if known else []
            scores = [results[key] for key in ("average_miou", "last1_miou", "top1_miou")]
            assert scores == pytest.approx([sum(average) / len(average), min(average), max(average)], abs=1e-12)


def test_table_of_scores_follows_from_the_lines(lines):
    card = (lines.parents[1] / f"results_{lines.stem}.md").read_text(encoding="utf-8")
    by_arm = {}
    for row in read_rows(lines):
        runs = by_arm.setdefault((row["arm"], json.dumps(training_settings(row), sort_keys=True)), {})
        runs[row["seed"]] = row["results"][row["settings"]["report_split"]]
    for (arm, _), runs in by_arm.items():
        cells = []
        for key in ("average_miou", "last1_miou", "top1_miou"):
            values = 100 * np.array([results[key] for results in runs.values()])
            cells.append(f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""))
        assert any(
            line.startswith(f"| `{arm}` |") and all(f"| {cell} |" in line for cell in cells)
            for line in card.splitlines()
        ), (arm, cells)


def test_card_is_what_the_command_writes(lines, tmp_path):
    output = tmp_path / "card.md"
    assert results_card.main(["--results", str(lines), "--output", str(output)]) == 0
    assert output.read_text(encoding="utf-8") == (lines.parents[1] / f"results_{lines.stem}.md").read_text(
        encoding="utf-8"
    )


def test_every_card_has_its_lines():
    names = {path.stem for path in PUBLISHED}
    cards = {path.stem.removeprefix("results_") for path in CARDS.glob("results_*.md")}
    assert names == cards


def test_lines_whose_scores_are_not_those_of_their_counts_are_refused(made, tmp_path, capsys):
    rows = read_rows(made)
    rows[1]["results"]["test"]["average_miou"] += 0.01
    changed = tmp_path / "changed.jsonl"
    changed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert results_card.main(["--results", str(changed), "--output", str(tmp_path / "card.md")]) == 2
    error = capsys.readouterr().err
    assert "sgma, seed 1," in error and "the line was changed" in error and error.count("\n") == 1
