import json
from dataclasses import dataclass, field

import pytest

from sgma_hf.commands.arguments import DataclassParser


@dataclass
class Arguments:
    rate: float = 0.1
    steps: int = 1
    side: int | None = None
    noise: list[float] = field(default_factory=list)
    names: list[str] | None = None
    flip: bool = True
    strategy: str = "steps"
    options: dict | str | None = None
    report_to: None | str | list[str] = None  # noqa: RUF036 (the order of TrainingArguments)


def read(tmp_path, text, name="arguments.yaml", flags=()):
    (tmp_path / name).write_text(text)
    [arguments] = DataclassParser(Arguments, prog="command").parse([str(tmp_path / name), *flags])
    return arguments


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("rate: 1e-3", 0.001),
        ("rate: 1.5E+2", 150.0),
        ("rate: -.5e1", -5.0),
        ("rate: 2", 2.0),
        ("rate: '6e-5'", 6e-5),
        ("steps: 20", 20),
        ("side: '24'", 24),
        ("side: null", None),
        ("noise: [1e-1, 0, .5]", [0.1, 0.0, 0.5]),
        ("noise: 3e-1", [0.3]),
        ("names: [rgb, dsm]", ["rgb", "dsm"]),
        ("flip: false", False),
        ("flip: no", False),
        ("strategy: no", "no"),
        ("strategy: 1e-3a", "1e-3a"),
        ("report_to: none", "none"),
        ("report_to: [tensorboard, wandb]", ["tensorboard", "wandb"]),
    ],
)
def test_values_are_read_as_on_the_command_line(tmp_path, line, value):
    read_value = getattr(read(tmp_path, line), line.split(":")[0])
    assert read_value == value and type(read_value) is type(value)


def test_a_mapping_is_handed_on_as_json_with_its_numbers(tmp_path):
    options = read(tmp_path, "options: {power: 2, lr_end: 1e-7, deep: [on, True, null]}").options
    assert json.loads(options) == {"power": 2, "lr_end": 1e-7, "deep": ["on", True, None]}


def test_a_json_file_is_read_likewise(tmp_path):
    values = {"rate": "1e-3", "steps": 5, "noise": [0, "1e-1"], "flip": False, "strategy": "no", "side": None}
    options = {"power": 2.5, "nesterov": True}
    arguments = read(tmp_path, json.dumps(values | {"options": options}, indent="\t"), "arguments.json")
    assert json.loads(arguments.options) == options
    arguments.options = None
    assert arguments == Arguments(rate=0.001, steps=5, noise=[0.0, 0.1], flip=False, strategy="no")


def test_flags_beside_the_file_override_it(tmp_path):
    text = "rate: 1e-3\nsteps: 5\nnames: [rgb, dsm]"
    arguments = read(tmp_path, text, flags=["--steps", "7", "--names", "nir"])
    assert (arguments.rate, arguments.steps, arguments.names) == (0.001, 7, ["nir"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rate: fast", "command: argument --rate: invalid float value: 'fast'\n"),
        ("rate: true", "command: argument --rate: invalid float value: 'true'\n"),
        ("steps: 2.5", "command: argument --steps: invalid int value: '2.5'\n"),
        ("side: [24, 3]", "command: no flag takes 3\n"),
        ("noise: [0.1, much]", "command: argument --noise: invalid float value: 'much'\n"),
        ("stratgy: no", "command: there is no flag --stratgy; did you mean --strategy?\n"),
    ],
)
def test_a_value_or_name_that_is_wrong_ends_with_one_line(tmp_path, capsys, line, message):
    with pytest.raises(SystemExit, match="2"):
        read(tmp_path, line)
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate: null", "`rate` is null; leave it out for its default, 0.1"),
        ("- rate", "holds no names of arguments"),
        ("", "holds no names of arguments"),
    ],
)
def test_a_file_that_is_none_of_arguments_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_help_shows_what_was_chosen_and_names_the_flag_that_shows_all(capsys):
    for flag, shown in (("--help", False), ("--help-all", True)):
        with pytest.raises(SystemExit, match="0"):
            DataclassParser(Arguments, prog="command").parse([flag], shown=["rate", "steps"])
        text = capsys.readouterr().out
        assert "--rate" in text and "`command --help_all` shows all flags." in text
        assert ("--strategy" in text) == shown
