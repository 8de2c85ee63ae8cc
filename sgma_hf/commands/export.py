"""`sgma-hf export`: a checkpoint as a torch.export program or as ONNX.

    sgma-hf export --model DIR_OR_ID --output model.pt2 --size 512
    sgma-hf export --model DIR_OR_ID --output model.onnx --size 512

Inputs: `pixel_values`, float32 (batch_size, channels, height, width), normalised as by the image processor, and
`modality_mask`, bool (batch_size, num_modalities), or with `--pixel_mask` (batch_size, num_modalities, height, width).
Output: `logits`, float32 (batch_size, num_labels, height, width). The batch size is free. Height and width are those
of --size, since predictions are made by tiles of one size, and a fixed one lets the compiler lay everything out; with
--dynamic_size they are any multiples of 32 from 64 on. Other sides would need another graph for each remainder, for
padding and cropping. What the image processor does is described in a JSON file beside the model. A graph computes
absent modalities, too, and gives them no weight: printed is the time of one image with all of them and with one
missing, of the file and of the model, which skips what is absent. ONNX takes the extra `onnx`.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, HfArgumentParser

import sgma_hf  # noqa: F401  registers the model with transformers' Auto classes
from sgma_hf.data.whole_files import replace_file, write_json
from sgma_hf.model.cells_sgma import LOGITS_STRIDE, PAD_MULTIPLE, upsample_to_pixels


SUFFIXES = (".pt2", ".onnx")
TOLERANCE = 1e-4  # of a check's logits, relative to the largest
LATENCY_ROUNDS = 5


@dataclass
class ExportArguments:
    """Arguments of `sgma-hf export`."""

    model: str = field(metadata={"help": "Checkpoint: a folder, or an id on the Hub."})
    output: str = field(metadata={"help": "File to write: .pt2 for torch.export, .onnx for ONNX."})
    size: int | None = field(
        default=None, metadata={"help": "Height and width of the images in pixels; default: that of training."}
    )
    pixel_mask: bool = field(default=False, metadata={"help": "Take a mask per pixel instead of one per modality."})
    dynamic_size: bool = field(
        default=False, metadata={"help": "Take images whose sides are any multiples of 32 pixels, from 64 on."}
    )


class PixelLogits(torch.nn.Module):
    """The model with logits at full resolution as its only output."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, modality_mask: torch.Tensor) -> torch.Tensor:
        """Logits of shape (batch_size, num_labels, height, width)."""
        outputs = self.model(pixel_values=pixel_values, modality_mask=modality_mask)
        return upsample_to_pixels(outputs.logits, LOGITS_STRIDE, tuple(pixel_values.shape[-2:]))


def main(argv: list[str] | None = None) -> int:
    """Export, check the result against the model, and say what was written.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        0, or 1 after one line that says what was wrong.
    """
    parser = HfArgumentParser(ExportArguments, prog="sgma-hf export", description=__doc__)
    (args,) = parser.parse_args_into_dataclasses(argv)
    try:
        difference, latencies = export(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"sgma-hf export: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}  largest difference to the model: {difference:.1e} of the largest logit")
    print(f"{Path(args.output).with_suffix('.json')}  modalities, normalisation and classes")
    for name, seconds in latencies.items():
        print(f"{1000 * seconds:8.1f} ms  {name}")
    return 0


def export(args: ExportArguments) -> tuple[float, dict[str, float]]:
    """Write the files; both are there when all went well, else neither is touched.

    Height and width are fixed unless `dynamic_size` asks for multiples of 32: only then do all stages divide evenly,
    and one graph without padding and cropping serves all sizes.

    Returns:
        The largest difference between the logits of the file and the model, relative to the largest logit; and the
        median seconds for one image, by what was timed.

    Raises:
        ValueError: If the arguments do not fit each other, or the file does not compute what the model computes.
        ImportError: If ONNX is asked for and the extra is missing.
    """
    output = Path(args.output)
    if output.suffix not in SUFFIXES:
        raise ValueError(f"`--output` is {args.output!r}; expected a name that ends in .pt2 or .onnx.")
    if output.suffix == ".onnx":
        _require_onnx()
    processor = AutoImageProcessor.from_pretrained(args.model)
    model = AutoModelForSemanticSegmentation.from_pretrained(args.model, dtype=torch.float32).eval()
    module = PixelLogits(model).eval()
    size = args.size or model.config.tile_size or min(processor.size.values())
    if args.dynamic_size and (size % PAD_MULTIPLE or size < 2 * PAD_MULTIPLE):
        raise ValueError(
            f"`--size` is {size}; `--dynamic_size` expects a multiple of {PAD_MULTIPLE}, at least {2 * PAD_MULTIPLE}."
        )
    inputs = _example(model.config, 2, size, pixel_mask=args.pixel_mask)
    with replace_file(output) as staged, torch.no_grad():
        shapes = _dynamic_shapes(inputs, dynamic_size=args.dynamic_size)
        if output.suffix == ".pt2":
            program = torch.export.export(module, (), inputs, dynamic_shapes=shapes)
            torch.export.save(program, staged)
            run = torch.export.load(staged).module()
        else:
            torch.onnx.export(
                module, (), staged, kwargs=inputs, dynamic_shapes=shapes, output_names=["logits"], external_data=False
            )
            run = _onnx_session(staged)
        sizes = [size, size + PAD_MULTIPLE] if args.dynamic_size else [size]
        difference = max(
            _largest_difference(module, run, model.config, side, pixel_mask=args.pixel_mask) for side in sizes
        )
        latencies = _latencies({"model": module, "file": run}, model.config, size, pixel_mask=args.pixel_mask)
        write_json(output.with_suffix(".json"), _describe(model.config, processor, size, args))
    return difference, latencies


def _dynamic_shapes(inputs: dict[str, torch.Tensor], *, dynamic_size: bool) -> dict[str, dict[int, Any]]:
    """Which sides of the inputs are free: rows, and with `dynamic_size` height and width by whole cells."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    sides = {}
    if dynamic_size:
        rows, columns = (torch.export.Dim(name, min=2, max=512) for name in ("cell_rows", "cell_columns"))
        sides = {2: PAD_MULTIPLE * rows, 3: PAD_MULTIPLE * columns}
    return {name: {0: batch} | (sides if tensor.ndim == 4 else {}) for name, tensor in inputs.items()}


def _latencies(
    runs: dict[str, Callable[..., torch.Tensor] | None], config: Any, size: int, *, pixel_mask: bool
) -> dict[str, float]:
    """Median seconds of a few passes of one image, with all modalities and, where there are several, one missing."""
    seconds = {}
    for name, run in runs.items():
        inputs = _example(config, 1, size, pixel_mask=pixel_mask)  # without the first modality
        cases = {"all modalities": inputs | {"modality_mask": torch.ones_like(inputs["modality_mask"])}}
        if config.num_modalities > 1:
            cases[f"without {config.modalities[0]}"] = inputs
        for case, given in cases.items() if run is not None else ():
            run(**given)
            times = []
            for _ in range(LATENCY_ROUNDS):
                start = time.perf_counter()
                run(**given)
                times.append(time.perf_counter() - start)
            seconds[f"{name}, {case}"] = statistics.median(times)
    return seconds


def _example(config: Any, batch_size: int, size: int, *, pixel_mask: bool, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random images; in every row another modality is missing, as far as there is one to spare."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch_size, config.num_modalities, dtype=torch.bool)
    if config.num_modalities > 1:
        rows = torch.arange(batch_size)
        mask[rows, (rows + seed) % config.num_modalities] = False
    if pixel_mask:
        mask = mask[..., None, None].repeat(1, 1, size, size)
    channels = sum(config.modality_channels)
    return {"pixel_values": torch.randn(batch_size, channels, size, size, generator=generator), "modality_mask": mask}


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"ONNX needs {error.name}, which is not installed. Install the extra: pip install 'sgma-hf[onnx]'."
        ) from error


def _onnx_session(path: Path) -> Callable[..., torch.Tensor] | None:
    """What computes the ONNX file; None without onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        print("onnxruntime is not installed, so the file is not checked against the model", file=sys.stderr)
        return None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(**inputs: torch.Tensor) -> torch.Tensor:
        (logits,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
        return torch.from_numpy(logits)

    return run


def _largest_difference(
    module: PixelLogits,
    run: Callable[..., torch.Tensor] | None,
    config: Any,
    size: int,
    *,
    pixel_mask: bool,
) -> float:
    """Compare with the model on other images, masks and another batch size.

    Raises:
        ValueError: If they differ.
    """
    if run is None:
        return float("nan")
    inputs = _example(config, 3, size, pixel_mask=pixel_mask, seed=1)
    expected = module(**inputs)
    difference = float((run(**inputs) - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE:
        raise ValueError(
            f"The exported model differs from the checkpoint by {difference:.1e} of the largest logit; expected at "
            f"most {TOLERANCE:.0e}. It was not written."
        )
    return difference


def _describe(config: Any, processor: Any, size: int, args: ExportArguments) -> dict[str, Any]:
    fields = processor.to_dict()
    names = ("modalities", "modality_channels", "rescale_factor", "image_mean", "image_std", "nodata")
    return {name: fields[name] for name in (*names, "reference_level")} | {
        "class_names": config.class_names,
        "size": f"multiples of {PAD_MULTIPLE}" if args.dynamic_size else [size, size],
        "modality_mask": "per pixel" if args.pixel_mask else "per modality",
    }
