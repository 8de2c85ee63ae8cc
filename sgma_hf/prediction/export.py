"""A model as a torch.export program or as ONNX, checked against the model and timed beside it."""

import functools
import io
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..data.whole_files import replace_file, write_json
from ..model.cells_sgma import PAD_MULTIPLE, upsample_to_pixels
from ..model.fusion_sgma import find_fusion
from ..model.post_processing_sgma import modality_shares, robustness_at_pixels


TOLERANCE = 1e-4  # of a check's outputs, relative to the largest value of each
LATENCY_ROUNDS = 5


class PixelOutputs(torch.nn.Module):
    """The model with some outputs alone, at full resolution, in the order of `names`; a tensor if it is one name."""

    def __init__(self, model: torch.nn.Module, names: Sequence[str] = ("logits",)):
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(
        self, pixel_values: torch.Tensor, modality_mask: torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """`logits` (batch_size, num_labels, height, width), `robustness` (batch_size, num_modalities, height, width).

        Robustness is what `post_process_robustness` makes of it. `coverage` is bool, (batch_size, height, width).
        """
        outputs = self.model(pixel_values=pixel_values, modality_mask=modality_mask)
        values = {"coverage": outputs.coverage}
        if "logits" in self.names:
            values["logits"] = upsample_to_pixels(
                outputs.logits, self.model.config.logits_stride, tuple(pixel_values.shape[-2:])
            )
        if "robustness" in self.names:
            shares = robustness_at_pixels(outputs.robustness, outputs.coverage, modality_mask)
            values["robustness"] = modality_shares(*shares)
        return values[self.names[0]] if len(self.names) == 1 else tuple(values[name] for name in self.names)


def check_export_path(output: str | os.PathLike) -> Path:
    """The path; ValueError unless it ends in `.pt2` or `.onnx`, ImportError if the extra for ONNX is missing."""
    output = Path(output)
    if output.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"`--output` is {str(output)!r}; expected a name that ends in .pt2 or .onnx.")
    if output.suffix == ".onnx":
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"ONNX needs {error.name}, which is not installed. Install the extra: pip install 'sgma-hf[onnx]'."
            ) from error
    return output


def export_model(
    model: Any,
    processor: Any,
    output: str | os.PathLike,
    *,
    size: int | None = None,
    pixel_mask: bool = False,
    dynamic_size: bool = False,
    outputs: Sequence[str] = ("logits",),
) -> tuple[float, dict[str, float]]:
    """Write the file and what its processor does, as JSON beside it; both when all went well, else neither.

    Height and width are fixed unless `dynamic_size` asks for multiples of 32: only then do all stages divide evenly,
    and one graph without padding and cropping serves all sizes.

    The model is in eval mode and float32. `size` is height and width in pixels; None takes the configuration's, that
    of the training crops, or the processor's. With `pixel_mask` the file takes a mask per pixel, else per modality.
    `outputs` are those of [`PixelOutputs`] that it has, in this order.
    Returns the largest difference between the outputs of the file and the model, relative to the largest value of
    each, and the median seconds for one image by what was timed. Raises ValueError if the file does not compute what
    the model does, or the model has no robustness.
    """
    if "robustness" in outputs and not find_fusion(model.config).has_robustness:
        raise ValueError(
            f"`--outputs` has robustness, and the checkpoint's fusion {model.config.fusion!r} has none; leave it out."
        )
    if model.config.date_periods is not None:
        sys.stderr.write("the model knows dates, and the file takes single images, as of an unknown date\n")
    output, module = check_export_path(output), PixelOutputs(model, outputs).eval()
    size = (model.config.tile_size or min(processor.size.values())) if size is None else size
    if size < 1:
        raise ValueError(f"`--size` is {size}; expected pixels, at least 1.")
    if dynamic_size and (size % PAD_MULTIPLE or size < 2 * PAD_MULTIPLE):
        raise ValueError(
            f"`--size` is {size}; `--dynamic_size` expects a multiple of {PAD_MULTIPLE}, at least {2 * PAD_MULTIPLE}."
        )
    example = functools.partial(_example, model.config, pixel_mask=pixel_mask)
    with replace_file(output) as staged, torch.no_grad():
        run = _write(module, example(2, size), staged, dynamic_size=dynamic_size)
        sizes = [size, size + PAD_MULTIPLE] if dynamic_size else [size]
        difference = max(_largest_difference(module, run, example(3, side, seed=1)) for side in sizes)
        seconds = _latencies({"model": module, "file": run}, example(1, size), model.config.modalities)
        fields = processor.to_dict()
        names = ("modalities", "modality_channels", "rescale_factor", "image_mean", "image_std", "nodata")
        description = {name: fields[name] for name in (*names, "reference_level")} | {
            "class_names": model.config.class_names,
            "size": f"multiples of {PAD_MULTIPLE}" if dynamic_size else [size, size],
            "modality_mask": "per pixel" if pixel_mask else "per modality",
            "outputs": list(outputs),
        }
        write_json(output.with_suffix(".json"), description)
    return difference, seconds


def _write(
    module: PixelOutputs, inputs: dict[str, torch.Tensor], path: Path, *, dynamic_size: bool
) -> Callable[..., Any] | None:
    """Write the file; returns what computes it, None without onnxruntime."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    sides = {}
    if dynamic_size:
        rows, columns = (torch.export.Dim(name, min=2, max=512) for name in ("cell_rows", "cell_columns"))
        sides = {2: PAD_MULTIPLE * rows, 3: PAD_MULTIPLE * columns}
    shapes = {name: {0: batch} | (sides if tensor.ndim == 4 else {}) for name, tensor in inputs.items()}
    if path.suffix == ".pt2":
        content = io.BytesIO()  # on a full disk, torch would end the process
        torch.export.save(torch.export.export(module, (), inputs, dynamic_shapes=shapes), content)
        path.write_bytes(content.getbuffer())
        return torch.export.load(path).module()
    names = list(module.names)
    torch.onnx.export(module, (), path, kwargs=inputs, dynamic_shapes=shapes, output_names=names, external_data=False)
    try:
        import onnxruntime
    except ImportError:
        sys.stderr.write("onnxruntime is not installed, so the file is not checked against the model\n")
        return None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda **given: [*map(torch.from_numpy, session.run(names, {k: v.numpy() for k, v in given.items()}))]


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


def _largest_difference(
    module: PixelOutputs, run: Callable[..., Any] | None, inputs: dict[str, torch.Tensor]
) -> float:
    """Of the outputs, relative to the largest value; NaN if the file cannot be run, a ValueError if they differ."""
    if run is None:
        return float("nan")
    given, expected = (
        [values.float() for values in ([found] if isinstance(found, torch.Tensor) else found)]
        for found in (run(**inputs), module(**inputs))
    )
    differences = [
        float((values - right).abs().max() / right.abs().max()) for values, right in zip(given, expected, strict=True)
    ]
    for name, difference in zip(module.names, differences, strict=True):
        if not difference <= TOLERANCE:
            raise ValueError(
                f"The exported model differs from the checkpoint by {difference:.1e} of the largest value of {name}; "
                f"expected at most {TOLERANCE:.0e}. It was not written."
            )
    return max(differences)


def _latencies(
    runs: dict[str, Callable[..., Any] | None], inputs: dict[str, torch.Tensor], modalities: list[str]
) -> dict[str, float]:
    """Median seconds of one image whose first modality is missing if there are others, before that with all."""
    cases = {"all modalities": inputs | {"modality_mask": torch.ones_like(inputs["modality_mask"])}}
    if len(modalities) > 1:
        cases[f"without {modalities[0]}"] = inputs
    seconds = {}
    for name, run in runs.items():
        for case, given in cases.items() if run is not None else ():
            times = []
            for _ in range(1 + LATENCY_ROUNDS):
                start = time.perf_counter()
                run(**given)
                times.append(time.perf_counter() - start)
            seconds[f"{name}, {case}"] = statistics.median(times[1:])  # the first one prepares
    return seconds
