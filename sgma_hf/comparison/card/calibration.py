"""Whether confidences are right as often as they say: a table and a figure, where runs hold such figures."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...evaluation.trust.calibration import CONFIDENCE_UNIT, expected_error
from ...publishing.tables import Table
from ...visualization.trust_charts import Points, plot_panels, shares_of_bins
from .cells import number, percent
from .experiments import Experiment, Figure, at


_NOTE = (
    "Expected calibration error in %, 15 bins: how far the confidence of pixels is from the share of them that is "
    "right, mean over the pixels of a combination; less is better. As trained, and with logits divided by the "
    "temperature that was fitted on the choosing split; above 1 the model was too sure of itself."
)
_STATES = ("as trained", "with the temperature")


def calibration_tables(experiment: Experiment) -> Iterator[Table]:
    """Yield the calibration error of every combination; nothing without such figures."""
    arms = experiment.holding("calibration")
    if arms is None:
        return
    names = list(arms.all_runs[0]["calibration"]["combinations"])
    lines = []
    for arm in arms.runs:
        temperature = number(arms.spread(arm, at("calibration", "temperatures", -1)))
        for place, state in enumerate(_STATES):
            found = [arms.spread(arm, _error(name, place)) for name in names]
            if any(found):
                lines.append([f"`{arm}`", state, temperature if place else "1", *map(percent, found)])
    header = ["arm", "confidences", "temperature", *names]
    yield Table(
        "calibration", "Whether confidences are right as often as they say", header, lines, _NOTE, text_columns=2
    )


def _error(name: str, place: int) -> Figure:
    """The error of a combination at a temperature, from the counts; None where it was not counted."""

    def figure(run: Mapping[str, Any]) -> float | None:
        parts = run["calibration"]["combinations"][name]
        if place >= len(parts):
            return None
        return expected_error(*(parts[place][key] for key in ("pixels", "right", "confidence")))

    return figure


def calibration_figures(experiment: Experiment, where: str) -> dict[str, Any]:
    """Draw `calibration`, reliability diagrams from all modalities and from each alone; `where` ends its title."""
    arms = experiment.holding("calibration")
    if arms is None:
        return {}
    modalities = arms.dataset["modalities"]
    names = {"+".join(modalities): "all modalities"} | {name: f"{name} alone" for name in modalities}
    rows: dict[str, dict[str, dict[str, Points]]] = {}
    for arm, runs in arms.runs.items():
        count = min(len(run["calibration"]["temperatures"]) for run in runs.values())
        rows[arm] = {
            state: {
                label: _diagram([run["calibration"]["combinations"][name][place] for run in runs.values()])
                for name, label in names.items()
            }
            for place, state in enumerate(_STATES[:count])
        }
    title, labels = f"Confidence, {where}", {"xlabel": "confidence", "ylabel": "share right"}
    return {"calibration": plot_panels(rows, title=title, diagonal=True, **labels)}


def _diagram(parts: list[Mapping[str, list[int]]]) -> Points:
    """Share right by mean confidence in each bin, all seeds together."""
    pixels, right, confidence = (
        np.sum([part[key] for part in parts], axis=0) for key in ("pixels", "right", "confidence")
    )
    return shares_of_bins(confidence / CONFIDENCE_UNIT / np.maximum(pixels, 1), right, pixels)
