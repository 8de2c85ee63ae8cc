"""Measures what the table of docs/encoders.md says of export and time, and writes these columns into it.

Time is the CPU time of one row, an image of three modalities, in inference and on one thread. Every encoder is timed
in turn with PVT-v2-b2, and the median of the ratios counts: other work on the machine then hits both alike. Export is
of the whole model and at 64 pixels, checked against the model. Needs the extras timm and onnx for all rows.

Example:
    python docs/measure_encoders.py --output figures.jsonl

What the output has is not measured again.
"""

import argparse
import functools
import json
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from sgma_hf import SgmaConfig, SgmaForSemanticSegmentation, SgmaImageProcessor
from sgma_hf.model.configuration_sgma import PVT_V2_B2
from sgma_hf.prediction.export import export_model


PAGE = Path(__file__).with_name("encoders.md")
ROW = re.compile(r"^(\| [^|]+ \| `(\{.*\})` \| [\d.]+ M \| (?:yes|no) \|)(?: [^|]* \| [^|]* \| [^|]* \|)? ([^|]*\|)$")
EXPORTS = {"torch.export": "model.pt2", "ONNX": "model.onnx"}
EXPORT_SIZE = 64


def main() -> None:
    """Measure the rows that the output lacks, then rewrite the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON lines, one for each figure")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each encoder beside PVT-v2-b2")
    parser.add_argument("--size", type=int, default=256, help="side of the image in pixels")
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, dict[str, Any]] = {}
    if args.output.is_file():
        for line in map(json.loads, args.output.read_text().splitlines()):
            figures.setdefault(line.pop("encoder"), {}).update(line)
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = {index: found for index, line in enumerate(lines) if (found := ROW.match(line))}
    reference = build(PVT_V2_B2)
    measures = {"time": lambda model: relative_time(model, reference, args.size, args.rounds)}
    measures |= {name: functools.partial(exports, name=file) for name, file in EXPORTS.items()}
    for column, measure in measures.items():  # the slowest last
        for found in rows.values():
            known = figures.setdefault(found[2], {})
            if column not in known:
                known[column] = measure(build(json.loads(found[2])))
                with args.output.open("a") as file:
                    file.write(json.dumps({"encoder": found[2], column: known[column]}) + "\n")
    for index, found in rows.items():
        figure = figures[found[2]]
        done = ["yes" if figure[name] is True else "no" for name in EXPORTS]
        lines[index] = f"{found[1]} {' | '.join(done)} | {figure['time']:.2f} | {found[3]}"
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def build(backbone_config: dict[str, Any]) -> SgmaForSemanticSegmentation:
    """Make a model of RGB, height and near infrared with random weights."""
    torch.manual_seed(0)
    # two heads divide the channels of all encoders of the table
    return SgmaForSemanticSegmentation(
        SgmaConfig(num_labels=5, num_attention_heads=2, backbone_config=backbone_config)
    ).eval()


@torch.no_grad()
def relative_time(
    model: SgmaForSemanticSegmentation, reference: SgmaForSemanticSegmentation, size: int, rounds: int
) -> float:
    """Median over the rounds of the CPU time of a row, as a share of the reference's."""
    pixel_values = torch.randn(1, 5, size, size, generator=torch.Generator().manual_seed(0))
    ratios = []
    for _ in range(1 + rounds):
        seconds = []
        for each in (model, reference):
            start = time.process_time()
            each(pixel_values)
            seconds.append(time.process_time() - start)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios[1:])  # the first one prepares


def exports(model: SgmaForSemanticSegmentation, name: str) -> bool | str:
    """Whether a file of the model computes what the model does; else why there is none."""
    config = model.config
    processor = SgmaImageProcessor(config.modalities, config.modality_channels)
    with tempfile.TemporaryDirectory() as folder:
        try:
            export_model(model, processor, Path(folder) / name, size=EXPORT_SIZE)
        except Exception as error:  # whatever torch and ONNX may raise on the code of an encoder
            return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return True


if __name__ == "__main__":
    main()
