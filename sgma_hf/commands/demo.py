"""`sgma-hf demo`: everything once, on procedural scenes: data, training, evaluation, reload, a map, a picture.

It calls the other commands as a user would, and prints them; they work on a data set of your own in the same way.
"""

import argparse
import json
import shlex
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import sgma_hf
from sgma_hf.commands import main as run_command
from sgma_hf.converters.demo_scenes import TILES_PER_SIDE
from sgma_hf.data.command_line import Parser, report_errors
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.data.rows import decode_row, load_rows
from sgma_hf.data.whole_files import write_json


# A small PVT-v2, from random weights: there is nothing to download.
BACKBONE = {
    "model_type": "pvt_v2",
    "hidden_sizes": [32, 64, 160, 256],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 5, 8],
    "mlp_ratios": [4, 4, 4, 4],
}
TRAINING = {
    "decoder_hidden_size": 128,
    "crop_size": 128,
    "per_device_train_batch_size": 8,
    "learning_rate": 2e-3,  # from scratch; the paper's 6e-5 is for a pretrained encoder
    "logging_steps": 50,
    "eval_strategy": "no",  # it takes as long as the training
    "save_strategy": "no",
    "report_to": "none",
}
FIGURE_DPI = 150
STOPPED = 130  # exit status of a command after Ctrl-C


@report_errors("sgma-hf demo", on_stop="the same command starts anew")
def main(argv: list[str] | None = None) -> int:
    """Run the demo."""
    parser = Parser(
        prog="sgma-hf demo",
        description="Train, evaluate and predict on procedural scenes; some minutes on two CPU cores, no network.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--output_dir", type=Path, required=True, help="folder for the data, the model and the results")
    add("--max_steps", type=int, default=600, help="training steps")
    add("--tiles", type=int, default=320, help="tiles of 128 x 128 pixels, 15 %% each to evaluate on")
    add("--seed", type=int, default=0, help="decides the scenes, the weights and the training")
    args = parser.parse_args(argv)
    import torch

    started = time.time()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    seconds = _train_and_evaluate(args)
    seconds["predict"] = _predict_with_a_modality_missing(args)
    picture = _draw(args)
    results_file = args.output_dir / "results.json"
    results = json.loads(results_file.read_text(encoding="utf-8"))
    results["demo"] = {
        "max_steps": args.max_steps,
        "tiles": args.tiles,
        "seed": args.seed,
        "prediction_with_a_modality_missing": [path.name for path in sorted(args.output_dir.glob("map*.png"))],
        "seconds": seconds | {"all": round(time.time() - started, 1)},
        "threads": torch.get_num_threads(),
        "versions": {"sgma_hf": sgma_hf.__version__} | {name: version(name) for name in ("torch", "transformers")},
    }
    write_json(results_file, results)
    print(f"\nDone in {time.time() - started:.0f} s. Results: {results_file}. Picture: {picture}")
    return 0


def _run(command: str, *arguments: Any) -> float:
    """Print and run one command of this package; returns the seconds it took."""
    line = [command, *map(str, arguments)]
    print(f"\n$ sgma-hf {shlex.join(line)}", flush=True)
    started = time.time()
    status = run_command(line)
    if status == STOPPED:
        raise KeyboardInterrupt
    if status:
        raise ValueError(f"`sgma-hf {command}` failed with status {status}; see above.")
    return round(time.time() - started, 1)


def _train_and_evaluate(args: argparse.Namespace) -> dict[str, float]:
    """Scenes, training, all seven combinations on the test split; seconds of each."""
    import torch

    dataset, model = args.output_dir / "dataset", args.output_dir / "model"
    backbone = args.output_dir / "backbone.json"
    write_json(backbone, BACKBONE)
    training = TRAINING | {"dataloader_pin_memory": torch.cuda.is_available()}
    flags = [part for name, value in training.items() for part in (f"--{name}", value)]
    return {
        "demo-scenes": _run(
            "demo-scenes", "--output", dataset, "--tiles", args.tiles, "--seed", args.seed, "--overwrite"
        ),
        "train": _run(
            "train", "--dataset", dataset, "--output_dir", model, "--overwrite", "true",
            "--backbone_config", backbone, *flags,
            "--max_steps", args.max_steps, "--seed", args.seed,
        ),
        "evaluate": _run(
            "evaluate", "--model", model, "--dataset", dataset, "--split", "test",
            "--output", args.output_dir / "results.json",
        ),
    }  # fmt: skip


def _predict_with_a_modality_missing(args: argparse.Namespace) -> float:
    """Write colour and near infrared of a test scene as pictures, and predict from them: the height is missing."""
    images, _ = _test_scene(args.output_dir / "dataset")
    folder = args.output_dir / "scene"
    folder.mkdir(exist_ok=True)
    for name in ("rgb", "nir"):
        Image.fromarray(images[name]).save(folder / f"{name}.png")
    return _run(
        "predict", "--model", args.output_dir / "model",
        "--rgb", folder / "rgb.png", "--nir", folder / "nir.png", "--output", args.output_dir / "map.png",
    )  # fmt: skip


def _test_scene(dataset: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The first scene of the test split, put together from its tiles; the first tile if there are not all."""
    rows = load_rows(str(dataset), "test")
    modalities = DatasetMetadata.load(dataset).modalities
    whole = len(rows) >= TILES_PER_SIDE**2
    tiles = [decode_row(rows[index], modalities) for index in range(TILES_PER_SIDE**2 if whole else 1)]
    if not whole:
        return tiles[0]
    images = {name: _mosaic([images[name] for images, _ in tiles]) for name in modalities}
    return images, _mosaic([label for _, label in tiles])


def _mosaic(tiles: list[np.ndarray]) -> np.ndarray:
    lines = [np.concatenate(tiles[start : start + TILES_PER_SIDE], axis=1) for start in (0, TILES_PER_SIDE)]
    return np.concatenate(lines)


def _draw(args: argparse.Namespace) -> Path:
    """The modality board of a test scene whose height model ends inside it, by the model as reloaded from disk."""
    from transformers import AutoImageProcessor, AutoModel

    from sgma_hf.visualization.boards import plot_modality_board

    print("\nReloading the model through AutoModel, and drawing what it sees, predicts and relies on ...", flush=True)
    model = AutoModel.from_pretrained(args.output_dir / "model").eval()
    processor = AutoImageProcessor.from_pretrained(args.output_dir / "model")
    metadata = DatasetMetadata.load(args.output_dir / "dataset")
    images, label = _test_scene(args.output_dir / "dataset")
    row, column = np.mgrid[0 : label.shape[0], 0 : label.shape[1]] / label.shape[0]
    images["dsm"] = np.where(column + 0.35 * row > 0.95, np.float32(metadata.nodata[1][0]), images["dsm"])
    figure = plot_modality_board(
        model,
        processor,
        images,
        label=label,
        units=dict(zip(metadata.modalities, metadata.units, strict=True)),
        title="A test scene of the demo; the height model ends inside it",
    )
    path = args.output_dir / "demo.png"
    figure.savefig(path, dpi=FIGURE_DPI)
    return path
