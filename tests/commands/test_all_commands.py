"""What holds for every command: one spelling of flags, former ones that go on working, answers without torch."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sgma_hf import SgmaConfig
from sgma_hf.commands import COMMANDS, main


ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ("isprs-potsdam", "isprs-vaihingen", "dfc2023", "deliver", "pastis", "multisenge")
CONVERTERS = ("convert-rasters", "demo-scenes", *BENCHMARKS)
TILED = tuple(name for name in CONVERTERS if name != "demo-scenes")
FORMER = [
    *((name, "--out", "x") for name in (*CONVERTERS, "predict", "plot-dynamics")),
    *((name, "--tile", "8") for name in (*TILED, "predict")),
    ("demo-scenes", "--size", "8"),
    ("evaluate", "--window_size", "8"),
    ("evaluate", "--dtype", "bfloat16"),
    ("compare", "--jobs", "2"),
]
# Flags whose words were joined by dashes once.
DASHED = {
    "convert-rasters": ["--ignore-unmapped", "--val-fraction", "--group-distance", "--group-regex", "--split-as"],
    "isprs-potsdam": ["--missing-seed", "--skip-damaged", "--allow-missing", "--num-proc"],
    "dfc2023": ["--split-seed"],
}


def shown_flags(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    return re.findall(r"^ {2,4}(--[^\s,=]+)", capsys.readouterr().out, flags=re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_have_underscores_and_the_words_of_all_commands(command, capsys):
    shown = shown_flags(command, capsys)
    assert shown and not [flag for flag in shown if "-" in flag[2:]]
    assert not {flag for name, flag, _ in FORMER if name == command} & set(shown)
    assert not {"--out", "--tile", "--window_size", "--jobs", "--dtype"} & set(shown)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        *((command, [flag, value]) for command, flag, value in FORMER),
        *((command, [flag]) for command, flags in DASHED.items() for flag in flags),
    ],
)
def test_former_spellings_go_on_working(command, words, tmp_path, capsys):
    # refusals name the first flag that there is not
    if command == "predict":  # whose flags are known with a model
        SgmaConfig(modalities=["rgb"], modality_channels=[3]).save_pretrained(tmp_path)
        words = [*words, "--model", str(tmp_path)]
    with pytest.raises(SystemExit, match="2"):
        main([command, *words, "--no_such_flag"])
    assert "there is no flag --no_such_flag" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_that_there_is_not_is_one_line(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([command, "--no_such_flag", "1"])
    said = "there is no flag --no_such_flag"
    if command == "predict":  # a modality of the model may be called so
        said = "the following arguments are required: --model, --output"
    assert capsys.readouterr().err == f"sgma-hf {command}: {said}\n"


def test_an_import_of_nothing_is_one_line(capsys):
    assert main(["--import"]) == 2
    said = capsys.readouterr().err
    assert said == "sgma-hf: --import names no module; expected `--import MODULE` in front of the command\n"


@pytest.mark.parametrize("words", [["--help"], ["convert-rasters", "--help"]])
def test_a_reader_that_has_left_is_no_error(words):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", "import sys; from sgma_hf.commands import main; sys.exit(main())", *words]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode in (0, 141) and done.stderr == ""  # argparse says nothing of it


def test_help_and_refusals_come_without_torch():
    program = (
        "import contextlib, os, sys\n"
        "from sgma_hf.commands import COMMANDS, main\n"
        "for command in COMMANDS:\n"
        # those of train are transformers' own
        "    for flag in ('--help', '--no_such_flag') if command != 'train' else ():\n"
        "        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(open(os.devnull, 'w')):\n"
        "            main([command, flag])\n"
        "    assert 'torch' not in sys.modules, command"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert run.returncode == 0, run.stderr
