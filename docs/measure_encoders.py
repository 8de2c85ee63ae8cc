"""Measures what the table of docs/encoders.md says of export and time, and writes these columns into it.

Time is the CPU time of one row, an image of three modalities, in inference and on one thread. Every encoder is timed
in turn with PVT-v2-b2, and the median of the ratios counts: other work on the machine then hits both alike. Exported
is the encoder with its pyramid, at 64 pixels and for any batch size; the maps of the file have to be those of the
encoder. Needs the extras timm and onnx, and onnxruntime.

Example:
    python docs/measure_encoders.py --output figures.jsonl

What the output has is not measured again.
"""

import argparse
import json
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from sgma_hf import SgmaConfig, SgmaForSemanticSegmentation
from sgma_hf.model.configuration_sgma import PVT_V2_B2


PAGE = Path(__file__).with_name("encoders.md")
ROW = re.compile(r"^(\| [^|]+ \| `(\{.*\})` \| [\d.]+ M \| (?:yes|no) \|)(?: [^|]* \| [^|]* \| [^|]* \|)? ([^|]*\|)$")
EXPORTS = ("torch.export", "ONNX")
EXPORT_SIZE = 64
TOLERANCE = 1e-4  # of the maps, relative to the largest value of each


def main() -> None:
    """Measure the rows that the output lacks, then rewrite the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON lines, one for each figure")
    columns = ("time", EXPORTS[-1])
    parser.add_argument(
        "--columns", nargs="*", choices=columns, default=columns, help="what to measure; ONNX: exports"
    )
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
    measures = {
        "time": lambda model: {"time": relative_time(model, reference, args.size, args.rounds)},
        EXPORTS[-1]: lambda model: exports(EncoderMaps(model).eval()),
    }
    for column in args.columns:  # the slower one last
        for found in rows.values():
            known = figures.setdefault(found[2], {})
            if column not in known:
                new = measures[column](build(json.loads(found[2])))
                known |= new
                with args.output.open("a") as file:
                    file.write(json.dumps({"encoder": found[2], **new}) + "\n")
    for index, found in rows.items():
        figure = figures[found[2]]
        done = [{True: "yes", None: "not tried"}.get(figure.get(name), "no") for name in EXPORTS]
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


class EncoderMaps(torch.nn.Module):
    """A model's encoder with its pyramid."""

    def __init__(self, model: SgmaForSemanticSegmentation):
        super().__init__()
        self.model = model.sgma

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Images (batch_size, 3, height, width) -> four maps."""
        return tuple(self.model.encoder_maps(pixel_values))


@torch.no_grad()
def exports(encoder: EncoderMaps) -> dict[str, bool | str]:
    """Whether a program, and a file, give the encoder's maps; else why there is none."""
    images = torch.randn(3, 3, EXPORT_SIZE, EXPORT_SIZE, generator=torch.Generator().manual_seed(0))
    expected, done = encoder(images), {}
    batch = torch.export.Dim("batch", min=1, max=1024)
    for name in EXPORTS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                if name == "ONNX":
                    import onnxruntime

                    path = Path(folder) / "encoder.onnx"
                    torch.onnx.export(
                        encoder, (images[:2],), path, dynamic_shapes=({0: batch},), external_data=False, verbose=False
                    )
                    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
                    maps = map(torch.from_numpy, session.run(None, {session.get_inputs()[0].name: images.numpy()}))
                else:
                    program = torch.export.export(encoder, (images[:2],), dynamic_shapes=({0: batch},))
                    maps = program.module()(images)
                errors = [
                    (one - right).abs().max() / right.abs().max() for one, right in zip(maps, expected, strict=True)
                ]
                done[name] = bool(max(errors) <= TOLERANCE) or f"differs by {max(errors):.1e}"
            except Exception as error:  # whatever torch and ONNX may raise on the code of an encoder
                done[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return done


if __name__ == "__main__":
    main()
