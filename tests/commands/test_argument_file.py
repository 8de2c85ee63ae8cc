import json
from dataclasses import dataclass

import pytest

from sgma_hf.commands.arguments import read_argument_file


@dataclass
class Arguments:
    rate: float = 0.1
    steps: int = 1
    side: int | None = None
    noise: list[float] = ()
    names: list[str] | None = None
    flip: bool = True
    strategy: str = "steps"
    options: dict | str | None = None


def read(tmp_path, text, name="arguments.yaml"):
    (tmp_path / name).write_text(text)
    return read_argument_file(str(tmp_path / name), Arguments)


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
        (
            "options: {power: 2, lr_end: 1e-7, deep: [on, True, null]}",
            {"power": 2, "lr_end": 1e-7, "deep": ["on", True, None]},
        ),
        ("unknown: 3", 3),
    ],
)
def test_values_are_read_as_on_the_command_line(tmp_path, line, value):
    [(name, read_value)] = read(tmp_path, line).items()
    assert name == line.split(":")[0]
    assert read_value == value and type(read_value) is type(value)


def test_a_json_file_is_read_likewise(tmp_path):
    values = {"rate": "1e-3", "steps": 5, "noise": [0, "1e-1"], "flip": "no", "strategy": "no", "side": None}
    assert read(tmp_path, json.dumps(values), "arguments.json") == {
        "rate": 0.001,
        "steps": 5,
        "noise": [0.0, 0.1],
        "flip": False,
        "strategy": "no",
        "side": None,
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rate: fast", "`rate` is 'fast'; expected a number"),
        ("rate: null", "`rate` is None; expected a number"),
        ("rate: true", "`rate` is True; expected a number"),
        ("steps: 2.5", "`steps` is 2.5; expected a whole number"),
        ("side: [24]", r"`side` is \[24\]; expected a whole number"),
        ("noise: [0.1, much]", r"`noise` is \[0.1, 'much'\]; expected a number"),
        ("flip: sometimes", "`flip` is 'sometimes'; expected true or false"),
        ("- rate", "holds a list; expected names of arguments"),
        ("", "holds a NoneType; expected names of arguments"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_by_its_name(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, line)
