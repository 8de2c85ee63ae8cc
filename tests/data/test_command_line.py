"""Flags that forgive a dash, and errors in one line."""

import ast
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from sgma_hf.data import command_line
from sgma_hf.data.command_line import Parser, check_folder_or_id, report_errors


class CommandParser(Parser, HfArgumentParser):
    pass


@dataclass
class Arguments:
    output: str = field(metadata={"help": "Where to.", "former": ("--out",)})
    tile_size: int = field(default=4, metadata={"former": ("--tile",)})
    keep_all: bool = field(default=True, metadata={"help": "All."})


def parser(**options):
    made = Parser(prog="sgma-hf try", **options)
    made.add_argument("--output", required=True, former=("--out",))
    made.add_argument("--val_fraction", type=float)
    made.add_argument("--split", choices=["official", "mmseg", "random"])
    made.add_argument("--classes", type=int, choices=[5, 6])
    made.add_argument("--modalities", nargs="+", default=[])
    return made


def refused(capsys, *words, made=None):
    with pytest.raises(SystemExit) as ended:
        (made or parser()).parse_args(words)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("sgma-hf try: ")
    return said.removeprefix("sgma-hf try: ").strip()


@pytest.mark.parametrize("flag", ["--val_fraction", "--val-fraction"])
def test_dashes_and_underscores_are_alike(flag):
    assert parser().parse_args(["--output", "x", flag, "0.5"]).val_fraction == 0.5
    assert parser().parse_args(["--output", "x", f"{flag}=0.5"]).val_fraction == 0.5


def test_values_stay_as_they_are():
    arguments = parser().parse_args(["--output=my-folder/--val-fraction", "--modalities", "a-b=c-d", "s2-after"])
    assert arguments.output == "my-folder/--val-fraction" and arguments.modalities == ["a-b=c-d", "s2-after"]


def test_a_flag_declared_with_a_dash_is_found_either_way():
    made = Parser()
    made.add_argument_group("modalities").add_argument("--s2-after", nargs="+")
    assert made.parse_args(["--s2-after", "x"]).s2_after == made.parse_args(["--s2_after", "x"]).s2_after == ["x"]


def test_a_switch_may_say_true_or_false(capsys):
    made = parser()
    made.add_switch("--keep_all", help="all")
    output = ["--output", "x"]
    for words, value in (
        ([], False),
        (["--keep-all"], True),
        (["--keep_all", "true"], True),
        (["--keep_all=no"], False),
    ):
        assert made.parse_args([*output, *words]).keep_all is value
    said = refused(capsys, *output, "--keep_all", "perhaps", made=made)
    assert said == "argument --keep_all: 'perhaps' is neither true nor false"


def test_a_former_flag_works_and_is_not_shown():
    made = parser()
    assert made.parse_args(["--out", "x"]).output == made.parse_args(["--out=x"]).output == "x"
    assert "--output" in made.format_help() and "--out " not in made.format_help()


def test_dataclasses_take_part():
    made = CommandParser(Arguments, prog="sgma-hf try")
    (arguments,) = made.parse_args_into_dataclasses(["--out", "x", "--tile=8", "--no-keep-all"])
    assert arguments == Arguments("x", 8, False)
    (arguments,) = made.parse_args_into_dataclasses(["--output", "x", "--tile-size", "9", "--keep_all"])
    assert arguments == Arguments("x", 9, True)
    shown = made.format_help()
    assert "--tile_size" in shown and "--tile-size" not in shown and "--tile " not in shown


def test_others_are_left_to_the_caller():
    arguments, others = parser().parse_known_args(["--output", "x", "--s2-after", "a-b", "--", "--val-fraction"])
    assert arguments.output == "x" and "--s2-after" in others and "--val-fraction" in others


def test_what_is_wrong_is_said_in_one_line(capsys):
    said = refused(capsys, "--val-fractoin", "0.5")  # though --output is absent as well
    assert said == "there is no flag --val-fractoin; did you mean --val_fraction?"
    assert refused(capsys, "--output", "x", "--xyzzy=1") == "there is no flag --xyzzy"
    said = refused(capsys, "--output", "x", "--split", "offical")
    assert said == "argument --split: 'offical' is none of official, mmseg, random; did you mean official?"
    said = refused(capsys, "--output", "x", "--classes", "7")
    assert said == "argument --classes: '7' is none of 5, 6"
    assert "--output" in refused(capsys)
    assert "invalid float value" in refused(capsys, "--output", "x", "--val-fraction", "much")
    assert "some" in refused(capsys, "--output", "x", "some")


def test_abbreviations_are_as_the_parser_wants_them(capsys):
    assert parser().parse_args(["--outp", "x"]).output == "x"
    assert "did you mean --output" in refused(capsys, "--outpu", "x", made=parser(allow_abbrev=False))


def test_a_folder_that_is_not_there_is_refused_and_an_id_is_not(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "weedmap" / "checkpoint-5").mkdir(parents=True)
    for given in ("outputs", "outputs/weedmap", str(tmp_path)):
        check_folder_or_id(given, "--model")
    assert not capsys.readouterr().err
    for given in ("org/name", "OpenGVLab/pvt_v2_b2", "org/name"):
        check_folder_or_id(given, "--model")
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"--model {given}: there is no such folder here; looking for it on the Hub"
        for given in ("org/name", "OpenGVLab/pvt_v2_b2")
    ]
    nearest = {
        "outputs/weedmpa": "outputs/weedmap",
        "outptus/weedmap": "outputs/weedmap",
        "ouputs/weedmap/checkpoint-5": "outputs/weedmap/checkpoint-5",
        "./output": "outputs",
        f"{tmp_path}/ouputs": f"{tmp_path}/outputs",
    }
    for given, near in nearest.items():
        with pytest.raises(FileNotFoundError, match=f"--model {given}: there is no such folder; did you mean {near}"):
            check_folder_or_id(given, "--model")
    for given in ("weedmap", "./xyz", "../xyz/a", "/xyz/a", "outputs/other", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="there is no such folder, and an id on the Hub is OWNER/NAME"):
            check_folder_or_id(given, "--model")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two sizes"), "sgma-hf try: two sizes\n"),
        (FileNotFoundError("no such folder"), "sgma-hf try: no such folder\n"),
        (ImportError("pip install sgma-hf[viz]"), "sgma-hf try: pip install sgma-hf[viz]\n"),
        (ValueError(), "sgma-hf try: ValueError\n"),
        (TypeError("asked for"), "sgma-hf try: asked for\n"),
    ],
)
def test_errors_of_a_person_are_one_line(capsys, error, line):
    @report_errors("sgma-hf try", also=(TypeError,))
    def main(argv):
        raise error

    assert main([]) == 2
    assert capsys.readouterr().err == line


def test_a_stopped_command_says_how_to_go_on(capsys):
    def main(argv):
        raise KeyboardInterrupt

    assert report_errors("sgma-hf try", on_stop="the same command goes on")(main)([]) == 130
    assert capsys.readouterr().err == "sgma-hf try: stopped; the same command goes on\n"


def test_an_error_is_not_written_behind_a_progress_bar(capsys):
    def read(path):
        raise ValueError(f"{path} is damaged.")

    @report_errors("sgma-hf try")
    def main(argv):
        return [read(path) for path in tqdm(["a.tif"])]

    assert main([]) == 2
    assert "sgma-hf try: a.tif is damaged." in capsys.readouterr().err.replace("\r", "\n").splitlines()


def test_other_errors_and_results_pass():
    @report_errors("sgma-hf try")
    def main(argv):
        if argv:
            raise KeyError("a fault of ours")

    assert main([]) == 0
    with pytest.raises(KeyError):
        main(["x"])


def test_it_imports_the_standard_library_alone():
    tree = ast.parse(Path(command_line.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= set(sys.stdlib_module_names) | {"collections.abc"}
