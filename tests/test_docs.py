"""What the pages of `docs/` print runs, as printed; and the API page is that of the docstrings."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
from document_blocks import blocks, commands, run, run_all, section
from workspace import write_encoder, write_landuse, write_scenes

from sgma_hf.commands import COMMANDS
from sgma_hf.comparison.card.cells import percent
from sgma_hf.comparison.card.experiments import SCORES, group_runs
from sgma_hf.comparison.run_records import read_rows


pytestmark = pytest.mark.long


ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in PAGES}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Scenes, rows and a run, as README's commands leave them."""
    folder = tmp_path_factory.mktemp("workspace")
    write_scenes(folder)
    write_landuse(folder)
    write_encoder(folder)
    (folder / "classes.json").write_text(blocks(TEXTS["rasters"], "json")[0][1])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in commands(section(TEXTS["README"], "Your own rasters")):
            run(words)
    return folder


@pytest.mark.parametrize(
    "page", ["rasters", "encoders", "modules", "training", "evaluation", "maps", "datasets", "series", "research"]
)
def test_a_page_runs_as_printed(page, workspace, tmp_path, monkeypatch):
    shutil.copytree(workspace, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    run_all(TEXTS[page])
    for words in commands(TEXTS[page], "bash"):
        for flag in ("--out", "--output", "--output_dir"):
            if flag in words:
                assert Path(words[words.index(flag) + 1]).exists(), words


def test_modules_stand_between_encoders_of_timm_and_a_decoder_of_segmentation_models():
    for library in ("timm", "segmentation_models_pytorch"):
        pytest.importorskip(library)
    ((_, example),) = blocks(TEXTS["modules"], "py")
    assert sum(bool(line.strip()) for line in example.splitlines()) <= 30
    scope = {}
    exec(compile(example, "example", "exec"), scope)
    assert scope["losses"][-1] < 0.5 * scope["losses"][0]


def test_labels_are_mapped_as_the_page_says(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(workspace)
    (words,) = (words for words in commands(section(TEXTS["rasters"], "Labels and class files")))
    run([*words[: words.index("--output") + 1], str(tmp_path / "named"), *words[words.index("--output") + 2 :]])
    metadata = json.loads((tmp_path / "named" / "sgma_dataset.json").read_text())
    assert metadata["class_names"] == ["ground", "crop", "weed"]
    assert metadata["palette"] == [[180, 180, 180], [60, 140, 60], [200, 60, 40]]


def test_the_page_shows_the_tables_that_are_printed(workspace, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    inspected, converted = commands(section(TEXTS["datasets"], "A folder of your own"))
    run([*converted[: converted.index("--output") + 1], str(tmp_path), *converted[converted.index("--output") + 2 :]])
    ((_, shown),) = blocks(TEXTS["datasets"], "text")
    assert shown in capsys.readouterr().out
    run(inspected)
    assert "\nsgma-hf convert-rasters --source scenes --output data/scenes" in capsys.readouterr().out


def test_every_command_that_is_printed_exists():
    for name, text in TEXTS.items():
        for words in commands(text):
            if words[0] == "sgma-hf":
                assert words[3 if words[1] == "--import" else 1] in COMMANDS, (name, words)
            elif words[0] == "make":
                assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), words
            elif words[0] == "pip":
                assert words[1] == "install", (name, words)
            else:
                scripts = [word for word in words if word.endswith(".py")]
                assert scripts and all((ROOT / script).is_file() for script in scripts), (name, words)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        file, _, heading = target.partition("#")
        if target.startswith("https://"):
            continue
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{path.name} links to {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, target


def test_the_resumed_run_is_the_one_that_was_started():
    lines = [words for words in commands(TEXTS["training"]) if words[:2] == ["sgma-hf", "train"]]
    (resumed,) = (words for words in lines if "--resume_from_checkpoint" in words)
    assert resumed[:-2] in lines


def test_the_api_page_is_that_of_the_docstrings():
    specification = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    make_api = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(make_api)
    assert make_api.PAGE.read_text(encoding="utf-8") == make_api.page(), "run `make docs`"


def test_figures_of_the_paper_are_apart_and_add_up():
    reported = TEXTS["research"].split("**Reported in the paper**")[1]
    assert "SGMA |" not in TEXTS["README"]
    rows = re.findall(r"^\| (\w+) \| ([\d. |]+) \|$", reported, flags=re.MULTILINE)
    assert [name for name, _ in rows] == ["MuSS", "M3L", "IMLT", "MAGIC", "SGMA"]
    for name, cells in rows:
        *combinations, average, last = (float(cell) for cell in cells.split("|"))
        assert len(combinations) == 7 and min(combinations) == last, name
        # published means are rounded
        assert abs(sum(combinations) / 7 - average) < 0.02, name


def test_readme_is_short_and_shows_figures_of_the_card():
    assert len(TEXTS["README"].splitlines()) <= 200
    measured = section(TEXTS["README"], "Results")
    rows = re.findall(r"^\| `([^`]+)`[^|]*\| (\d+) \| (.*) \|$", measured, flags=re.MULTILINE)
    assert 1 <= len(rows) <= 10
    name = re.search(r"\(model_cards/results_(\w+)\.md\)", measured)[1]
    lines = ROOT / "model_cards" / "results" / f"{name}.jsonl"
    card = (ROOT / "model_cards" / f"results_{name}.md").read_text(encoding="utf-8")
    for arm, seeds, figures in rows:
        if lines.exists():
            assert (arm, int(seeds), figures) in scores_of(lines)
            continue
        (line,) = set(re.findall(rf"^\| `{arm}` \|.*{re.escape(figures)} \|$", card, flags=re.MULTILINE))
        assert line, arm
        assert re.search(rf"^\| `{arm}` \|.*\| {seeds} \|$", card, flags=re.MULTILINE), arm


def scores_of(lines):
    """Arm, number of seeds and the three scores as they are written, of all trainings in a file of lines."""
    for experiment in group_runs(read_rows(lines)):
        for arm, runs in experiment.runs.items():
            scores = (percent(experiment.spread(arm, experiment.score(key))) for key in SCORES.values())
            yield arm, len(runs), " | ".join(map(str, scores))
