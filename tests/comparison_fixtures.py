"""Made-up runs of a comparison, and settings so small that a real one takes a second."""

import json

from sgma_hf.converters import demo_scenes


BACKBONE = {
    "model_type": "pvt_v2",
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "mlp_ratios": [2, 2, 2, 2],
}
TINY = {
    "max_steps": 2,
    "batch_size": 2,
    "crop_size": 32,
    "decoder_hidden_size": 16,
    "choosing_split": "validation",
    "backbone_config": BACKBONE,
}
FLAGS = [
    part
    for name, value in TINY.items()
    for part in (f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value))
]


def write_scenes(folder):
    """Seven training rows, one to validate and one to test, of 64 pixels, some training rows incomplete."""
    assert demo_scenes.main(["--out", str(folder), "--tiles", "9", "--size", "64"]) in (0, None)
    return str(folder)


def made_up_run(arm, seed, average, *, last=0.3, top=0.7, missing=None, name="fields", **changes):
    """A line as `sgma-hf compare` writes it, of two modalities and two classes."""
    combinations = {
        names: {"miou": miou, "iou": [miou - 0.1, miou + 0.1]}
        for names, miou in (("a", last), ("b", average), ("a+b", top))
    }
    scores = {"combinations": combinations, "average_miou": average, "last1_miou": last, "top1_miou": top}
    scores["bernoulli_miou"] = {"0.2": average, "0.1": average, "0.05": average}
    settings = {"train_split": "train", "report_split": "test", "choosing_split": None, "missing": missing or {}}
    settings |= {"max_steps": 500, "batch_size": 8, "crop_size": 128, "learning_rate": 1e-3}
    settings |= {"decoder_hidden_size": 128, "backbone_config": BACKBONE, "corruptions": False, "reliance": False}
    rows = {"train": {"count": 7, "per_modality": [7, 5]}, "test": {"count": 2, "per_modality": [2, 2]}}
    run = {
        "arm": arm,
        "seed": seed,
        "dataset": {
            "name": name,
            "fingerprint": "0123456789abcdef",
            "modalities": ["a", "b"],
            "class_names": ["bare", "crop"],
            "rows": rows,
        },
        "settings": settings | {"device": "cpu", "threads": 1},
        "arm_definition": {"config": {}, "training": {}, "early_fusion": False},
        "model_config": {"fusion": "sgf"},
        "versions": {"sgma_hf": "0.1.0", "torch": "2.13.0"},
        "commit": "0" * 40,
        "commit_has_changes": False,
        "hardware": {"processor": "CPU (imagined)", "cores": 2, "threads": 1},
        "seconds": {"train": 180.0, "evaluate": 20.0},
        "parameters": 2014819,
        "gmacs": 0.3051,
        "losses": {"loss": 1.5},
        "results": {"test": scores},
        "format_version": 1,
    }
    return run | changes
