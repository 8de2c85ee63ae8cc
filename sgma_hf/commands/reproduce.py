"""`sgma-hf reproduce`: convert, train, evaluate and write the card of a recipe, and set the paper's row beside ours.

    sgma-hf reproduce potsdam --source Potsdam --output runs/potsdam

What is done already is skipped: a run that was stopped goes on with the same command.
"""

import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sgma_hf.commands.recipes import STATUSES, Recipe, recipe_names
from sgma_hf.data.command_line import Parser, did_you_mean, report_errors
from sgma_hf.data.whole_files import write_text
from sgma_hf.publishing.tables import markdown_table


_GO_ON = "the same command goes on from here"


def _parser() -> Parser:
    parser = Parser(prog="sgma-hf reproduce", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help=f"{', '.join(recipe_names())}, or a YAML file")
    add("--source", type=Path, metavar="DIR", help="folder of the data set's unpacked archives")
    add("--output", type=Path, metavar="DIR", help="folder for data, model and scores; default: runs/RECIPE")
    text = "other values than the recipe's: train.max_steps=100 convert.tile_size=256; nothing after = takes one out"
    add("--set", dest="changes", nargs="+", action="extend", default=[], metavar="SECTION.NAME=VALUE", help=text)
    parser.add_switch("--show", help="print what is known of each choice and the commands, and do nothing")
    return parser


@report_errors("sgma-hf reproduce", on_stop=_GO_ON)
def main(argv: list[str] | None = None) -> int:
    """Run the steps that are not done; the status of the one that failed, or 0 after the table of scores."""
    parser = _parser()
    args = parser.parse_args(argv)
    recipe = Recipe.read(args.recipe).changed(args.changes)
    output = args.output or Path("runs", recipe.name)
    steps = _steps(recipe, args.source or Path("DIR"), output)
    if args.show:
        print(_shown(recipe, steps))
        return 0
    if args.source is None:
        parser.error("nothing to convert: give the folder of the data set by --source")
    if not args.source.is_dir():
        raise FileNotFoundError(f"--source {args.source} is not a folder.")
    _check(recipe, steps, output)
    for name, words in steps.items():
        status = _run_step(recipe, name, words, output)
        if status:
            if status == 130:
                print(f"sgma-hf reproduce: stopped at {name}; {_GO_ON}", file=sys.stderr)
            return status
    results = _write_card(recipe, output)
    text = _beside(recipe, results, args.changes, output / "model")
    write_text(output / "comparison.md", text)
    print(text)
    return 0


def _steps(recipe: Recipe, source: Path, output: Path) -> dict[str, list[str]]:
    """The commands by what they do."""
    from sgma_hf.commands import COMMANDS

    converter = recipe.content.get("converter", "")
    if converter not in COMMANDS:
        hint = did_you_mean(converter, COMMANDS) or "; `sgma-hf --help` lists them."
        raise ValueError(f"The recipe {recipe.name} converts by `{converter}`, which is no command{hint}")
    data, model = str(output / "data"), str(output / "model")
    training = ["train", "--recipe", str(output / "recipe.yaml"), "--dataset", data, "--output_dir", model]
    scores = ["evaluate", "--model", model, "--dataset", data, "--output", str(output / "results.json")]
    return {
        "convert": [converter, "--source", str(source), "--output", data, *recipe.flags("convert")],
        "train": training,
        "evaluate": [*scores, *recipe.flags("evaluate")],
    }


def _check(recipe: Recipe, steps: Mapping[str, list[str]], output: Path) -> None:
    """Refuse an output of another recipe, and what training and evaluation would refuse after hours."""
    from sgma_hf.commands import evaluate, train

    kept = output / "recipe.yaml"
    if kept.is_file() and Recipe.read(str(kept)).content != recipe.without_base().content:
        raise ValueError(f"--output {output} holds a reproduction by other values ({kept}); name another folder.")
    with tempfile.TemporaryDirectory() as folder:
        recipe.save(Path(folder, "recipe.yaml"))
        words = steps["train"][1:]
        try:
            train.parse_arguments(["--recipe", str(Path(folder, "recipe.yaml")), *words[2:]])
        except ValueError as error:
            way_out = "--set train.NAME=VALUE takes another value than the recipe's, train.bf16=false for one."
            raise ValueError(f"{str(error).rstrip('.')}. {way_out}") from error
    evaluate.row_parser().parse_args(steps["evaluate"][1:])


def _run_step(recipe: Recipe, name: str, words: list[str], output: Path) -> int:
    """Run a step where it is not done; the status of its command."""
    from sgma_hf.commands import main as run_command

    if _is_done(name, output):
        print(f"{name}: done already")
        return 0
    if name == "train":
        _check_labels(output / "data", recipe.values("evaluate"))
    resume = _resumption(output / "model") if name == "train" else []
    print(f"{name}: sgma-hf {shlex.join([*words, *resume])}", flush=True)
    status = run_command([*words, *resume])
    if name == "convert" and not status:
        recipe.save(output / "recipe.yaml")
    return status


def _resumption(model: Path) -> list[str]:
    """Flags that go on with a training; one that was stopped while it saved its first checkpoint begins anew."""
    from sgma_hf.training.checkpoints import last_complete_checkpoint

    if not any(model.glob("checkpoint-*")):
        return []
    return ["--overwrite" if last_complete_checkpoint(str(model)) is None else "--resume_from_checkpoint", "true"]


def _check_labels(data: Path, scoring: Mapping[str, Any]) -> None:
    """Refuse rows that nothing could be scored on, before they are trained for."""
    from sgma_hf.data.rows import labelled_rows, load_rows, with_label_column

    split = scoring["split"]
    rows = with_label_column(load_rows(data, split), scoring.get("label_column", "label"))
    if not len(labelled_rows(rows)):
        raise ValueError(
            f"No row of split {split!r} in {data} has a label, so nothing can be scored on it. Add the archive with "
            "those labels and remove that folder, or name another split by --set evaluate.split=NAME."
        )


def _is_done(name: str, output: Path) -> bool:
    from sgma_hf.data.metadata import METADATA_FILE
    from sgma_hf.publishing.record import RECORD_FILE
    from sgma_hf.publishing.weights_digest import DIGEST_KEY, checkpoint_digest

    if name == "convert":  # the recipe is written when the rows are there
        return (output / "recipe.yaml").is_file() and (output / "data" / METADATA_FILE).is_file()
    if name == "train":  # saved beside the weights of a finished run; a checkpoint has its own
        return (output / "model" / RECORD_FILE).is_file()
    return _results(output).get(DIGEST_KEY) == checkpoint_digest(output / "model")


def _results(output: Path) -> dict[str, Any]:
    path = output / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write_card(recipe: Recipe, output: Path) -> dict[str, Any]:
    """Write the model's card with the scores; a card that a person wrote is left as it is. Returns the scores."""
    from transformers import AutoConfig, AutoImageProcessor

    from sgma_hf.commands.push_to_hub import record_with_scores
    from sgma_hf.publishing.model_card import MARKER, build_model_card

    folder = output / "model"
    record = record_with_scores(folder, str(output / "results.json"))
    record.save(folder)
    card, options = folder / "README.md", recipe.values("card")
    options["tags"] = options["tags"].split() if isinstance(options.get("tags"), str) else options.get("tags", [])
    if not card.is_file() or MARKER in card.read_text(encoding="utf-8"):
        config, processor = AutoConfig.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
        write_text(card, str(build_model_card(config, processor, record, **options)))
    return _results(output)


def _beside(recipe: Recipe, results: Mapping[str, Any], changes: Sequence[str], model: Path) -> str:
    """The paper's row beside ours, by combination, and the hours that the training took beside those computed."""
    from sgma_hf.publishing.record import TrainingRecord

    reported = recipe.content.get("reported", {})
    paper = {frozenset(name.split("+")): float(score) for name, score in reported.get("combinations", {}).items()}
    lines = [
        (name, paper.get(frozenset(name.split("+"))), scores["miou"])
        for name, scores in results["combinations"].items()
    ]
    for name, key in (("Average", "average"), ("Last-1", "last1")):
        lines.append((name, float(reported[key]) if key in reported else None, results[f"{key}_miou"]))
    table = markdown_table(["mIoU in %", "paper", "here"], [[name, _number(a), _percent(b)] for name, a, b in lines])
    record, cost = TrainingRecord.load(model), recipe.computed_cost()
    counts = ", ".join(f"{name} {count}" for name, count in recipe.statuses().items())
    source = f"Paper: {reported.get('source', 'not said')}."
    remarks = [source if reported else "The paper reports no figures of this data set."]
    remarks.append(f"The choices made here: {counts} (`sgma-hf reproduce {recipe.name} --show` lists them).")
    remarks += [f"Unlike the recipe: {', '.join(changes)}. So these figures are none of it."] * bool(changes)
    if record is not None and record.train_seconds is not None:
        remarks.append(f"The training took {record.train_seconds / 3600:.2g} h, measured, on {record.hardware}.")
    remarks += [] if cost is None else [f"Computed for one NVIDIA H200: {cost[0]:.2g} h, {cost[1]:.0f} GB."]
    return "\n".join([f"{recipe.content.get('title', recipe.name)}:", "", table, "", *remarks]) + "\n"


def _number(score: float | None) -> str:
    return "–" if score is None else f"{score:.2f}"


def _percent(score: float | None) -> str:
    return _number(None if score is None else 100 * score)


def _shown(recipe: Recipe, steps: Mapping[str, list[str]]) -> str:
    legend = "\n".join(f"{name}: {said}" for name, said in STATUSES.items())
    commands = "\n".join(f"sgma-hf {shlex.join(words)}" for words in steps.values())
    cost = recipe.computed_cost()
    said = "" if cost is None else f"Computed for one NVIDIA H200: {cost[0]:.2g} h, {cost[1]:.0f} GB."
    return "\n\n".join(filter(None, [recipe.content.get("title"), recipe.choices_table(), legend, said, commands]))
