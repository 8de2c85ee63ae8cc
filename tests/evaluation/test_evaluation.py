"""Evaluation of every modality combination: against a naive loop, and against counts worked by hand."""

import copy
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from comparison_fixtures import BACKBONE
from torch import nn

from sgma_hf.data.whole_files import write_json
from sgma_hf.evaluation.agreement_scores import evaluate_agreement
from sgma_hf.evaluation.combinations import evaluate_modality_combinations, modality_combinations
from sgma_hf.evaluation.metrics import confusion_matrix, segmentation_scores
from sgma_hf.evaluation.prepared_rows import PreparedRows
from sgma_hf.model.configuration_sgma import SgmaConfig
from sgma_hf.model.image_processing_sgma import SgmaImageProcessor
from sgma_hf.model.modeling_sgma import SgmaForSemanticSegmentation
from sgma_hf.publishing.results import results_to_markdown
from sgma_hf.publishing.weights_digest import weights_digest


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = SgmaConfig(
        modalities=["rgb", "dsm", "nir"],
        modality_channels=[3, 1, 1],
        num_labels=3,
        backbone_config=BACKBONE,
        decoder_hidden_size=16,
        num_attention_heads=2,
    )
    return SgmaForSemanticSegmentation(config).double()


@pytest.fixture
def processor():
    return SgmaImageProcessor(
        modalities=["rgb", "dsm", "nir"],
        modality_channels=[3, 1, 1],
        rescale_factor=[1.0, 1.0, 1.0],
        image_mean=[[0.0, 0.0, 0.0], [1.0], [0.0]],
        image_std=[[1.0, 1.0, 1.0], [1.0], [1.0]],
        nodata=[[], [-9999.0], []],
        reference_level=["none", "none", "none"],
    )


def _row(name, *, seed, size=(40, 36), without=(), hole=False):
    generator = np.random.default_rng(seed)
    row = {
        "id": name,
        "rgb": generator.normal(size=(*size, 3)).astype(np.float32),
        "dsm": generator.normal(size=size).astype(np.float32),
        "nir": generator.normal(size=size).astype(np.float32),
        "label": generator.integers(0, 3, size).astype(np.uint8),
    }
    row["label"][:3] = 255
    if hole:
        row["dsm"][:, 20:] = -9999
    return row | dict.fromkeys(without)


@pytest.fixture
def rows():
    return [
        _row("complete", seed=0),
        _row("without dsm", seed=1, without=["dsm"]),
        _row("nir only", seed=2, without=["rgb", "dsm"]),
        _row("another size", seed=3, size=(32, 64), without=["nir"]),
        _row("dsm ends inside", seed=4, hole=True),
        _row("part of a dsm only", seed=5, hole=True, without=["rgb", "nir"]),
        _row("without dsm as well", seed=6, without=["dsm"]),
    ]


def _naive_confusion(model, processor, rows, names, *, missing):
    """One row and one full forward pass at a time, through the processor's own post-processing."""
    model.eval()
    subset = torch.tensor([name in names for name in model.config.modalities])
    channels = subset.repeat_interleave(torch.tensor(model.config.modality_channels))
    total = np.zeros((3, 3), dtype=np.int64)
    for row in rows:
        if all(row[name] is None for name in names):
            continue
        images = {name: row[name] for name in model.config.modalities}
        inputs = processor(images=[images], segmentation_maps=[row["label"]], return_tensors="pt")
        values, mask = inputs["pixel_values"].double(), inputs["modality_mask"]
        mask = mask if mask.ndim == 4 else mask[..., None, None].expand(-1, -1, *values.shape[-2:])
        mask = mask & subset[:, None, None]
        with torch.no_grad():
            if missing == "absent":
                outputs = model(pixel_values=values, modality_mask=mask)
            else:
                outputs = model(pixel_values=torch.where(channels[:, None, None], values, 0))
                outputs.coverage = mask.any(1)
        (predicted,) = processor.post_process_semantic_segmentation(outputs)
        labels = inputs["labels"][0].masked_fill(predicted == 255, 255)
        total += confusion_matrix(predicted, labels, 3)
    return total


@pytest.mark.parametrize("missing", ["absent", "zero"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_one_encoding_gives_the_confusion_matrices_of_the_naive_loop(model, processor, rows, batch_size, missing):
    options = {"batch_size": batch_size, "missing": missing}
    results = evaluate_modality_combinations(model, processor, rows, return_tiles=True, **options)
    combinations = modality_combinations(model.config.modalities)
    assert list(results["combinations"]) == ["+".join(names) for names in combinations]
    assert results["tiles"]["ids"] == [row["id"] for row in rows]
    for names in combinations:
        tiles = [_naive_confusion(model, processor, [row], names, missing=missing) for row in rows]
        assert results["tiles"]["confusion"]["+".join(names)] == [tile.flatten().tolist() for tile in tiles]
        expected = segmentation_scores(sum(tiles))
        scores = results["combinations"]["+".join(names)]
        # the same integers, so the same floats
        assert {key: scores[key] for key in expected} == expected
        assert expected["pixels"] > 0


@pytest.mark.parametrize("missing", ["absent", "zero"])
@pytest.mark.parametrize("options", [{}, {"tta": "flips"}])
def test_no_batch_asks_the_device_for_anything(model, processor, rows, missing, options):
    # On the device "meta" there are no values: what asks for one raises, as the sums do at the very end.
    options = {"missing": missing, "batch_size": 2, **options}
    passes = []
    model.sgma.backbone.register_forward_hook(lambda *_: passes.append(1))
    evaluate_modality_combinations(model, processor, rows, **options)
    asked, model = len(passes), model.to("meta")
    with pytest.raises(NotImplementedError, match="meta"):
        evaluate_modality_combinations(model, processor, rows, **options)
    assert len(passes) == 2 * asked


def test_missing_as_zeros_is_not_missing_as_absent(model, processor, rows):
    absent = evaluate_modality_combinations(model, processor, rows)
    zero = evaluate_modality_combinations(model, processor, rows, missing="zero")
    for name, scores in absent["combinations"].items():
        assert zero["combinations"][name]["pixels"] == scores["pixels"]
    assert zero["combinations"]["rgb"]["iou"] != absent["combinations"]["rgb"]["iou"]


def test_workers_and_chosen_combinations_change_no_figure(model, processor, rows):
    everything = evaluate_modality_combinations(model, processor, rows)
    some = evaluate_modality_combinations(
        model, processor, rows, combinations=[("dsm",), ("nir", "rgb")], num_workers=1, batch_size=2
    )
    assert list(some["combinations"]) == ["dsm", "rgb+nir"]
    for name, scores in some["combinations"].items():
        assert scores == everything["combinations"][name]


def test_what_is_evaluated_is_not_resized_as_what_is_mapped_is_not(model, processor, rows):
    resizing = copy.copy(processor)
    resizing.do_resize, resizing.size = True, {"height": 32, "width": 32}
    expected, found = (evaluate_modality_combinations(model, one, rows) for one in (processor, resizing))
    assert found["combinations"] == expected["combinations"]


def test_evaluation_leaves_the_global_random_state_alone(model, processor, rows):
    state = torch.get_rng_state()
    evaluate_modality_combinations(model, processor, rows, num_workers=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_combinations_come_by_size_in_the_order_of_the_modalities():
    assert modality_combinations(["rgb", "dsm", "nir"]) == [
        ("rgb",),
        ("dsm",),
        ("nir",),
        ("rgb", "dsm"),
        ("rgb", "nir"),
        ("dsm", "nir"),
        ("rgb", "dsm", "nir"),
    ]
    assert len(modality_combinations(list("abcdefghij"))) == 1023
    with pytest.raises(ValueError, match="11 modalities have 2047 combinations"):
        modality_combinations(list("abcdefghijk"))


class _FirstModalityModel(nn.Module):
    """Predicts the index of the first modality it is given, everywhere: every count can be worked by hand."""

    def __init__(self, modalities, num_labels=3):
        super().__init__()
        self.config = SimpleNamespace(
            modalities=modalities,
            modality_channels=[1] * len(modalities),
            num_labels=num_labels,
            class_names=[f"class {index}" for index in range(num_labels)],
            semantic_loss_ignore_index=255,
            date_periods=None,
        )
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def encode(self, pixel_values, modality_mask):
        present = modality_mask if modality_mask.ndim == 2 else modality_mask.flatten(2).any(2)
        return present, pixel_values.shape[-2] // 4, pixel_values.shape[-1] // 4

    def fuse_and_decode(self, encoding, subset_mask):
        present, height, width = encoding
        first = (present & subset_mask).int().argmax(1)
        logits = nn.functional.one_hot(first, self.config.num_labels).float()
        return SimpleNamespace(logits=logits[..., None, None].expand(-1, -1, height, width))


def _plain_processor(modalities):
    count = len(modalities)
    return SgmaImageProcessor(
        modalities=modalities,
        modality_channels=[1] * count,
        image_mean=[[0.0]] * count,
        image_std=[[1.0]] * count,
        nodata=[[-1.0]] * count,
        reference_level=["none"] * count,
    )


def _flat_row(name, label, **modalities):
    """A row of 8 x 8 pixels with the same label everywhere, or with none."""
    label = None if label is None else np.full((8, 8), label, dtype=np.uint8)
    return {"id": name, "label": label} | modalities


SEEN = np.ones((8, 8), dtype=np.float32)


def test_counts_worked_by_hand_with_rows_that_lack_modalities():
    half = SEEN.copy()
    half[:, 2:] = -1  # nodata: covers 16 of 64 pixels
    rows = [
        _flat_row("a", 0, red=SEEN, nir=SEEN),
        _flat_row("b", 1, red=None, nir=SEEN),
        _flat_row("c", 0, red=None, nir=half),
        _flat_row("no label", None, red=SEEN, nir=SEEN),
        _flat_row("nothing", 0, red=None, nir=None),
        _flat_row("nodata only", 0, red=None, nir=np.full((8, 8), -1.0, np.float32)),
    ]
    model = _FirstModalityModel(["red", "nir"])
    results = evaluate_modality_combinations(model, _plain_processor(["red", "nir"]), rows)
    assert (results["rows"], results["rows_without_label"], results["rows_without_modality"]) == (6, 1, 2)
    assert results["rows_per_modality"] == {"red": 1, "nir": 3}
    red, nir, both = (results["combinations"][name] for name in ("red", "nir", "red+nir"))

    # red: row a alone, predicted 0, which is right
    assert (red["pixels"], red["rows"], red["rows_left_out"], red["rows_complete"]) == (64, 1, 2, 1)
    assert (red["miou"], red["iou"], red["accuracy"]) == (1.0, [1.0, None, None], 1.0)
    assert red["uncovered_share"] == 0.0
    # nir: everything is predicted 1; 64 pixels of row a and the 16 covered ones of row c are wrong, 64 of row b right
    assert (nir["pixels"], nir["rows"], nir["rows_complete"]) == (144, 3, 3)
    assert nir["iou"] == [0.0, 64 / 144, None]
    assert nir["miou"] == 32 / 144
    assert nir["uncovered_share"] == pytest.approx(48 / 192, abs=1e-15)
    # both: row a by red, rows b and c by nir
    assert (both["pixels"], both["rows"], both["rows_complete"]) == (144, 3, 1)
    assert both["iou"] == [64 / 80, 64 / 80, None]

    assert results["average_miou"] == pytest.approx((1 + 32 / 144 + 0.8) / 3, abs=1e-15)
    assert (results["top1_miou"], results["top1_combination"]) == (1.0, "red")
    assert (results["last1_miou"], results["last1_combination"]) == (32 / 144, "nir")
    assert results["unscored_combinations"] == []


def test_classes_only_predicted_count_or_not_by_choice():
    rows = [_flat_row("a", 0, red=SEEN, nir=SEEN)]
    processor, model = _plain_processor(["red", "nir"]), _FirstModalityModel(["red", "nir"])
    union = evaluate_modality_combinations(model, processor, rows)
    truth = evaluate_modality_combinations(model, processor, rows, scored_classes="truth")
    assert union["combinations"]["nir"]["iou"] == [0.0, 0.0, None]
    assert truth["combinations"]["nir"]["iou"] == [0.0, None, None]
    named = evaluate_modality_combinations(model, processor, rows, scored_classes=("class 1", "class 2"))
    assert (named["scored_classes"], named["average_miou"]) == (["class 1", "class 2"], 0.0)
    assert [scores["miou"] for scores in named["combinations"].values()] == [None, 0.0, None]
    assert named["combinations"]["nir"]["confusion"] == [[0, 64, 0], [0, 0, 0], [0, 0, 0]]
    assert "Means over class 1, class 2; the pixels of all classes count." in results_to_markdown(named)


def test_modality_whose_column_is_all_null_leaves_its_combinations_unscored():
    rows = [_flat_row("a", 0, red=SEEN, nir=None), _flat_row("b", 1, red=SEEN, nir=None)]
    model = _FirstModalityModel(["red", "nir"])
    results = evaluate_modality_combinations(model, _plain_processor(["red", "nir"]), rows, return_tiles=True)
    assert results["unscored_combinations"] == ["nir", "red+nir"]
    assert results["tiles"]["confusion"]["red+nir"] == [[0] * 9] * 2
    for name in ("nir", "red+nir"):
        scores = results["combinations"][name]
        assert (scores["miou"], scores["accuracy"], scores["rows"], scores["rows_left_out"]) == (None, None, 0, 2)
    # all is predicted 0: IoU 1/2 and 0
    assert results["average_miou"] == results["top1_miou"] == results["last1_miou"] == 0.25
    markdown = results_to_markdown(results)
    assert "| nir | – | – | – |" in markdown
    assert "not scored and no part of the average: nir, red+nir." in markdown


def test_labels_that_are_all_ignored_leave_every_score_undefined():
    rows = [_flat_row("a", 255, red=SEEN, nir=SEEN)]
    model = _FirstModalityModel(["red", "nir"])
    results = evaluate_modality_combinations(model, _plain_processor(["red", "nir"]), rows)
    assert results["average_miou"] is results["top1_miou"] is results["last1_combination"] is None
    assert results["unscored_combinations"] == ["red", "nir", "red+nir"]
    assert "Average –, Top-1 –, Last-1 –" in results_to_markdown(results)


def test_rows_wait_for_others_of_their_size_but_not_for_ever():
    rows = [
        {"id": str(side), "label": np.zeros((side, 8), np.uint8), "red": np.ones((side, 8), np.float32)}
        for side in range(8, 88, 4)
    ]
    model = _FirstModalityModel(["red"])
    results = evaluate_modality_combinations(model, _plain_processor(["red"]), rows, batch_size=2)
    assert results["combinations"]["red"]["pixels"] == sum(range(8, 88, 4)) * 8
    assert results["combinations"]["red"]["rows"] == 20


def test_bad_rows_and_datasets_are_errors_that_say_which():
    model, processor = _FirstModalityModel(["red"]), _plain_processor(["red"])
    with pytest.raises(ValueError, match="has no rows"):
        evaluate_modality_combinations(model, processor, [])
    with pytest.raises(TypeError, match="has no length"):
        evaluate_modality_combinations(model, processor, iter([_flat_row("a", 0, red=SEEN)]))
    with pytest.raises(ValueError, match=r"None of the 2 rows can be evaluated: 1 have no label, 1 have none"):
        evaluate_modality_combinations(model, processor, [_flat_row("a", None, red=SEEN), _flat_row("b", 0, red=None)])
    with pytest.raises(ValueError, match=r"Row 'high': `label` holds 3; expected class ids from 0 to 2"):
        evaluate_modality_combinations(model, processor, [_flat_row("high", 3, red=SEEN)])
    with pytest.raises((ValueError, TypeError), match="Row 'float'"):
        evaluate_modality_combinations(model, processor, [_flat_row("float", 0, red=SEEN) | {"label": SEEN}])
    broken = {"bytes": b"\x89PNG\r\n\x1a\n broken", "path": None}
    with pytest.raises(ValueError, match="Row 'torn', column 'red'"):
        evaluate_modality_combinations(model, processor, [_flat_row("torn", 0, red=broken)])
    with pytest.raises(ValueError, match=r"no column for \['red'\]"):
        evaluate_modality_combinations(model, processor, [_flat_row("a", 0, blue=SEEN)])


def test_bad_options_are_errors():
    model, processor, rows = _FirstModalityModel(["red"]), _plain_processor(["red"]), [_flat_row("a", 0, red=SEEN)]
    with pytest.raises(ValueError, match="`missing` is 'noise'"):
        evaluate_modality_combinations(model, processor, rows, missing="noise")
    with pytest.raises(ValueError, match="`scored_classes` is 'all'"):
        evaluate_modality_combinations(model, processor, rows, scored_classes="all")
    with pytest.raises(ValueError, match="`batch_size` is 0"):
        evaluate_modality_combinations(model, processor, rows, batch_size=0)
    with pytest.raises(ValueError, match=r"holds \('blue',\)"):
        evaluate_modality_combinations(model, processor, rows, combinations=[("blue",)])
    with pytest.raises(ValueError, match="holds 'red'; expected non-empty sequences of names"):
        evaluate_modality_combinations(model, processor, rows, combinations=["red"])
    with pytest.raises(ValueError, match="`combinations` is empty"):
        evaluate_modality_combinations(model, processor, rows, combinations=[])
    with pytest.raises(ValueError, match=r"`processor` is for modalities \['nir'\]"):
        evaluate_modality_combinations(model, _plain_processor(["nir"]), rows)
    model.config.semantic_loss_ignore_index = -100
    with pytest.raises(ValueError, match=r"`semantic_loss_ignore_index` is -100; .* Set it to 255"):
        evaluate_modality_combinations(model, processor, rows)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_restored_also_after_an_error(training):
    model, processor = _FirstModalityModel(["red"]).train(training), _plain_processor(["red"])
    evaluate_modality_combinations(model, processor, [_flat_row("a", 0, red=SEEN)])
    assert model.training is training
    with pytest.raises(ValueError, match="Row 'high'"):
        evaluate_modality_combinations(model, processor, [_flat_row("high", 3, red=SEEN)])
    assert model.training is training


def test_markdown_is_a_table_in_percent_with_what_was_left_out():
    rows = [_flat_row("a", 0, red=SEEN, nir=SEEN), _flat_row("b", 1, red=None, nir=SEEN)]
    model = _FirstModalityModel(["red", "nir"], num_labels=2)
    results = evaluate_modality_combinations(model, _plain_processor(["red", "nir"]), rows)
    lines = results_to_markdown(results).splitlines()
    assert lines[:5] == [
        "| modalities | mIoU | F1 | accuracy | kappa | IoU class 0 | IoU class 1 | rows |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        "| red | 100.00 | 100.00 | 100.00 | – | 100.00 | – | 1 |",
        "| nir | 25.00 | 33.33 | 50.00 | 0.00 | 0.00 | 50.00 | 2 |",
        "| red+nir | 100.00 | 100.00 | 100.00 | 100.00 | 100.00 | 100.00 | 2 |",
    ]
    assert lines[-4:] == [
        "| class, from red+nir | IoU | F1 | user's accuracy | producer's accuracy |",
        "|---|---:|---:|---:|---:|",
        "| class 0 | 100.00 | 100.00 | 100.00 | 100.00 |",
        "| class 1 | 100.00 | 100.00 | 100.00 | 100.00 |",
    ]
    assert "Average 75.00, Top-1 100.00 (red), Last-1 25.00 (nir): mIoU in %." in lines
    assert "Rows with a part of a combination only, predicted from that: red+nir 1." in lines
    # JSON keeps everything that the table needs
    assert results_to_markdown(json.loads(json.dumps(results))).splitlines() == lines
    cut = evaluate_modality_combinations(model, _plain_processor(["red", "nir"]), rows, window_size=4)
    lines = results_to_markdown(cut).splitlines()
    assert lines[0].endswith("| windows |") and lines[3].endswith("| 8 |")
    assert "Windows with a part of a combination only, predicted from that: red+nir 4." in lines


def test_results_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "results.json"
    write_json(path, {"average_miou": 0.5})
    assert json.loads(path.read_text()) == {"average_miou": 0.5}
    with pytest.raises(ValueError):
        write_json(path, {"average_miou": float("nan")})
    with pytest.raises(TypeError):
        write_json(path, {"average_miou": object()})
    assert json.loads(path.read_text()) == {"average_miou": 0.5}
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_a_full_disk_leaves_the_previous_results(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_json(path, {"average_miou": 0.5})

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"average_miou": 0.6})
    assert json.loads(path.read_text()) == {"average_miou": 0.5}
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_command_writes_json_and_prints_the_table(model, processor, rows, tmp_path, capsys):
    import datasets

    from sgma_hf.commands.evaluate import main
    from sgma_hf.data.codec import encode_raster
    from sgma_hf.data.metadata import DatasetMetadata

    model.float().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "data" / "data").mkdir(parents=True)
    features = DatasetMetadata(["rgb", "dsm", "nir"], [3, 1, 1], ["float32"] * 3).features()
    encoded = [{name: value if name == "id" else encode_raster(value) for name, value in row.items()} for row in rows]
    table = datasets.Dataset.from_list(encoded, features=features)
    table.to_parquet(tmp_path / "data" / "data" / "validation-00000-of-00001.parquet")

    output = tmp_path / "results.json"
    paths = ["--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "data"), "--output", str(output)]
    assert main([*paths, "--split", "validation", "--device", "cpu"]) == 0
    results = json.loads(output.read_text())
    assert list(results["combinations"]) == ["rgb", "dsm", "nir", "rgb+dsm", "rgb+nir", "dsm+nir", "rgb+dsm+nir"]
    assert (results["split"], results["rows"], results["dtype"]) == ("validation", 7, "float32")
    expected = evaluate_modality_combinations(model, processor, rows)
    # A copy's logits differ in the last bits, so the class of a pixel may differ where two are as likely.
    assert results["average_miou"] == pytest.approx(expected["average_miou"], abs=1e-3)
    assert results["weights_sha256"] == weights_digest(model.state_dict().items())
    assert results_to_markdown(results) in capsys.readouterr().out
    assert "agreement" not in results
    names = results["class_names"]
    for given, expected in (([names[1]], names[1:2]), (["truth"], "truth")):
        assert main([*paths, "--split", "validation", "--device", "cpu", "--score_classes", *given]) == 0
        scores = json.loads(output.read_text())
        assert scores["scored_classes"] == expected
    assert scores["average_miou"] == results["average_miou"]  # all are labelled
    capsys.readouterr()
    for flags, message in (
        (["--split", "test"], "no split 'test'"),
        (["--split", "validation", "--score_classes", f"{names[1]}x"], f"did you mean {names[1]}?"),
        (["--split", "validation", "--stride", "16", "--tile_size", "0"], "but rows are taken whole; give a size."),
        (["--split", "validation", "--model", str(tmp_path / "gone")], "gone: there is no such folder"),
        (["--split", "validation", "--dataset", str(tmp_path / "dada")], f"did you mean {tmp_path / 'data'}?"),
    ):
        assert main([*paths, *flags]) == 2
        error = capsys.readouterr().err
        assert error.startswith("sgma-hf evaluate: ") and message in error and error.count("\n") == 1
    other = copy.deepcopy(processor)
    other.image_mean[0] = [1000.0] * 3
    other.save_pretrained(tmp_path / "other")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tmp_path / "model" / name, tmp_path / "other")
    elsewhere = [*paths, "--split", "validation", "--model", str(tmp_path / "other"), "--device", "cpu"]
    assert main(elsewhere) == 2
    error = capsys.readouterr().err
    assert "The data set's 'rgb': it holds in band " in error and error.count("\n") == 1
    assert main([*elsewhere, "--allow_other_scale"]) == 0 and capsys.readouterr().out
    for flags, message in ((["--rgb", "x.tif"], "no flag --rgb"), (["--missing", "zeros"], "did you mean zero?")):
        with pytest.raises(SystemExit) as stop:
            main([*paths, "--split", "validation", *flags])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and message in error and error.count("\n") == 1

    assert main([*paths, "--split", "validation", "--device", "cpu", "--agreement", "--window_size", "16"]) == 0
    results = json.loads(output.read_text())
    yardstick = evaluate_agreement(model, processor, rows, window_size=16)
    for name, found in yardstick.items():  # not to the last bit: kernels depend on where a copy's weights lie
        assert results["agreement"][name] == pytest.approx(found, rel=1e-6)
    assert f"reach: rgb {yardstick['rgb']['mean']:.2f} (" in capsys.readouterr().out

    without_height = table.remove_columns("dsm")  # a site that was never surveyed
    without_height.to_parquet(tmp_path / "data" / "data" / "validation-00000-of-00001.parquet")
    assert main([*paths, "--split", "validation", "--device", "cpu"]) == 0
    results = json.loads(output.read_text())
    assert results["unscored_combinations"] == ["dsm", "rgb+dsm", "dsm+nir", "rgb+dsm+nir"]
    nulls = [row | {"dsm": None} for row in rows]
    expected = evaluate_modality_combinations(model, processor, nulls)
    assert results["average_miou"] == pytest.approx(expected["average_miou"], abs=1e-3)


def test_windows_of_a_row_are_one_tile(model, processor, rows):
    whole, cut = (
        evaluate_modality_combinations(model, processor, rows, window_size=size, batch_size=3, return_tiles=True)
        for size in (None, 32)
    )
    assert cut["windows"] > len(rows) and cut["tiles"]["ids"] == whole["tiles"]["ids"]
    labelled = [
        [[sum(tile) for tile in tiles] for tiles in results["tiles"]["confusion"].values()] for results in (whole, cut)
    ]
    assert labelled[0] == labelled[1] != []


@pytest.mark.parametrize(("size", "window_size"), [((7, 12), 5), ((5, 5), 5), ((3, 4), 10), ((11, 10), 4)])
def test_windows_count_every_pixel_once(size, window_size):
    label = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size)
    row = {"id": "a", "red": np.ones(size, np.float32), "label": label}
    model = _FirstModalityModel(["red"], num_labels=255)
    (windows,) = PreparedRows([row], _plain_processor(["red"]), model.config, window_size)
    assert all(window.labels.shape == tuple(min(side, window_size) for side in size) for window in windows)
    counted = torch.cat([window.labels.flatten() for window in windows])
    assert sorted(counted[counted != 255].tolist()) == label.flatten().tolist()
