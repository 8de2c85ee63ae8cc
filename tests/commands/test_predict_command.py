"""`sgma-hf predict`: flags by the checkpoint, files in and out, and nothing half-written."""

import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import spread_weights, tiny_model

from sgma_hf.commands import main as run_command
from sgma_hf.commands.predict import main
from sgma_hf.model.image_processing_sgma import SgmaImageProcessor
from sgma_hf.rasters.scene import RasterScene


HEIGHT, WIDTH = 40, 56
CLASSES = ["water", "ground", "grass", "tree", "roof"]
PALETTE = [[0, 0, 200], [120, 120, 120], [100, 220, 100], [0, 90, 0], [200, 40, 40]]
UTM = "EPSG:32631"
BESIDE = ["map.png.aux.xml", "map.qml", "map.sld"]


@pytest.fixture(scope="module")
def model():
    made = tiny_model(id2label=dict(enumerate(CLASSES)), label2id={name: i for i, name in enumerate(CLASSES)})
    made.config.palette = PALETTE
    return spread_weights(made).eval()


@pytest.fixture(scope="module")
def processor(model):
    return SgmaImageProcessor(model.config.modalities, model.config.modality_channels)


@pytest.fixture(scope="module")
def checkpoint(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def rasters(tmp_path):
    """RGB as PNG; height as TIFF of half the resolution with a gap at the right; SAR as channels-last `.npy`."""
    generator = np.random.default_rng(0)
    rgb = generator.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    dsm = generator.uniform(100, 120, (HEIGHT // 2, WIDTH // 2)).astype(np.float32)
    dsm[:, 20:] = -9999
    sar = generator.normal(-15, 5, (HEIGHT, WIDTH, 2)).astype(np.float32)
    Image.fromarray(rgb).save(tmp_path / "in.png")
    Image.fromarray(dsm).save(tmp_path / "in_dsm.tif")
    np.save(tmp_path / "in_sar.npy", sar)
    files = {"rgb": tmp_path / "in.png", "dsm": tmp_path / "in_dsm.tif", "sar": tmp_path / "in_sar.npy"}
    return {name: str(path) for name, path in files.items()}, {"rgb": rgb, "dsm": dsm, "sar": sar}


def flags(files, *names):
    return [part for name in names for part in (f"--{name}", files[name])]


def predicted(model, processor, images):
    with torch.no_grad():
        outputs = model(**processor(images=[images]))
    (ids,) = processor.post_process_semantic_segmentation(outputs)
    (shares,) = processor.post_process_robustness(outputs)
    return ids.numpy(), shares.numpy()


def write_geotiff(path, values, *, left=500000.0, top=4800000.0, pixel=1.0, **profile):
    rasterio = pytest.importorskip("rasterio")
    transform = rasterio.Affine(pixel, 0, left, 0, -pixel, top)
    count, height, width = values.shape
    profile |= {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values.dtype.name}
    with rasterio.open(path, "w", crs=UTM, transform=transform, **profile) as target:
        target.write(values)
    return str(path)


def test_map_is_what_the_model_says_without_the_modality_left_out(
    model, processor, checkpoint, rasters, tmp_path, capsys
):
    files, images = rasters
    out = tmp_path / "new" / "map.png"
    assert main(["--model", checkpoint, *flags(files, "rgb", "sar"), "--output", str(out)]) == 0
    ids, shares = predicted(model, processor, {"rgb": images["rgb"], "sar": images["sar"]})
    written = np.asarray(Image.open(out))
    assert written.dtype == np.uint8
    assert len(np.unique(ids)) > 1
    # Weights from a file lie elsewhere in memory, which may change the last bits of two scores that are all but equal.
    assert (written == ids).mean() > 0.999
    color = np.asarray(Image.open(tmp_path / "new" / "map_color.png"))
    np.testing.assert_array_equal(color[..., :3], np.array(PALETTE)[written])
    assert (color[..., 3] == 255).all()
    scaled = np.asarray(Image.open(tmp_path / "new" / "map_robustness_sar.png"))
    np.testing.assert_allclose(scaled / 255, shares[2], atol=0.5 / 255 + 1e-6)
    names = ["map.png", "map_color.png", "map_legend.png", "map_robustness_rgb.png", "map_robustness_sar.png"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["map.png", *BESIDE, *names[1:]]
    printed = capsys.readouterr().out
    assert "40 x 56 pixels from rgb, sar; missing: dsm" in printed
    assert all(str(tmp_path / "new" / name) in printed for name in names)
    assert "255 = no data" in printed and "0..255 = 0..1" in printed


def test_reliance_of_an_earlier_picture_is_removed_by_name_and_no_file_of_others(
    checkpoint, rasters, tmp_path, capsys
):
    files, _ = rasters
    out = tmp_path / "new" / "map.png"
    assert main(["--model", checkpoint, *flags(files, "rgb", "sar"), "--output", str(out)]) == 0
    theirs = tmp_path / "new" / "map_robustness_dsm.png"
    Image.new("L", (4, 4)).save(theirs)
    assert main(["--model", checkpoint, *flags(files, "rgb"), "--output", str(out)]) == 0
    names = ["map_color.png", "map_legend.png", "map_robustness_dsm.png", "map_robustness_rgb.png"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["map.png", *BESIDE, *names]
    assert (
        f"{out.parent / 'map_robustness_sar.png'}  removed: it belonged to an earlier map" in capsys.readouterr().out
    )
    pytest.importorskip("rasterio")
    assert main(["--model", checkpoint, *flags(files, "dsm"), "--output", str(out)]) == 2
    assert "map_robustness_dsm.png, beside map.png, would replace a file" in capsys.readouterr().err
    assert Image.open(theirs).size == (4, 4)


def test_raster_of_another_resolution_with_a_gap(model, processor, checkpoint, rasters, tmp_path):
    pytest.importorskip("rasterio")
    files, images = rasters
    out = tmp_path / "map.png"
    assert main(["--model", checkpoint, *flags(files, "rgb", "dsm"), "--output", str(out)]) == 0
    ids, shares = predicted(model, processor, {"rgb": images["rgb"], "dsm": images["dsm"]})
    # The processor takes the reference level from the pixels of the file, the command from those of the map's grid.
    assert (np.asarray(Image.open(out)) == ids).mean() > 0.97
    scaled = np.asarray(Image.open(tmp_path / "map_robustness_dsm.png"))
    np.testing.assert_allclose(scaled / 255, shares[1], atol=0.03)


def test_pixels_that_nothing_covers_are_255_and_transparent(checkpoint, rasters, tmp_path, capsys):
    pytest.importorskip("rasterio")
    files, _ = rasters
    out = tmp_path / "map.png"
    assert main(["--model", checkpoint, *flags(files, "dsm"), "--output", str(out)]) == 0
    ids = np.asarray(Image.open(out))
    assert ids.shape == (HEIGHT // 2, WIDTH // 2)
    assert (ids[:, 20:] == 255).all() and (ids[:, :20] < 5).all()
    assert (np.asarray(Image.open(tmp_path / "map_color.png"))[..., 3] == np.where(ids == 255, 0, 255)).all()
    shares = np.asarray(Image.open(tmp_path / "map_robustness_dsm.png"))
    np.testing.assert_array_equal(shares, np.where(ids == 255, 0, 255))  # alone, it is all that there is
    assert "28.6%  covered by no modality (255)" in capsys.readouterr().out  # 8 of 28 columns


def test_geotiff_keeps_the_place_of_the_first_raster(model, processor, checkpoint, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    generator = np.random.default_rng(1)
    rgb = generator.integers(1, 255, (3, HEIGHT, WIDTH)).astype(np.uint8)
    # Height in pixels of 2 m, from 16 m further west and 8 m further north: cut to the extent, values as they are.
    dsm = generator.uniform(100, 120, (1, 40, 60)).astype(np.float32)
    rgb_file = write_geotiff(tmp_path / "rgb.tif", rgb)
    dsm_file = write_geotiff(tmp_path / "dsm.tif", dsm, left=500000.0 - 16, top=4800000.0 + 8, pixel=2.0)
    out = tmp_path / "map.tif"
    extras = ["--extras", "robustness"]
    assert main(["--model", checkpoint, "--rgb", rgb_file, "--dsm", dsm_file, "--output", str(out), *extras]) == 0
    images = {"rgb": np.moveaxis(rgb, 0, -1), "dsm": dsm[0, 4:24, 8:36]}
    ids, shares = predicted(model, processor, images)
    with rasterio.open(out) as result, rasterio.open(rgb_file) as reference:
        assert (result.crs, result.transform) == (reference.crs, reference.transform)
        assert (result.nodata, result.dtypes) == (255, ("uint8",))
        # The reference level is that of interpolated pixels in a map, and of the file's own in the processor.
        assert (result.read(1) == ids).mean() > 0.95
        colors = result.colormap(1)
        assert [list(colors[index][:3]) for index in range(5)] == PALETTE
        assert colors[255] == (0, 0, 0, 0)
        assert result.tags(1)["CLASS_4"] == "roof"
    with rasterio.open(tmp_path / "map_robustness.tif") as result:
        assert result.descriptions == ("rgb", "dsm") and result.transform == rasterio.open(rgb_file).transform
        assert np.abs(result.read() - shares[:2]).mean() < 0.02
        np.testing.assert_allclose(result.read().sum(0), 1, atol=1e-6)


def test_half_precision_gives_nearly_the_same_map_and_shares(checkpoint, tmp_path, capsys):
    rasterio = pytest.importorskip("rasterio")
    generator = np.random.default_rng(3)
    files = {
        "rgb": write_geotiff(tmp_path / "rgb.tif", generator.integers(1, 255, (3, HEIGHT, WIDTH)).astype(np.uint8)),
        "sar": write_geotiff(tmp_path / "sar.tif", generator.normal(-15, 5, (2, HEIGHT, WIDTH)).astype(np.float32)),
    }
    given = ["--model", checkpoint, *flags(files, "rgb", "sar")]
    extras = ["--extras", "confidence", "probabilities", "robustness", "decision", "agreement"]
    found = {}
    for precision in ([], ["--bf16"], ["--fp16"]):
        out = tmp_path / f"map{''.join(precision)}.tif"
        assert main([*given, "--output", str(out), *extras, *precision]) == 0
        with rasterio.open(out) as labels, rasterio.open(out.with_name(f"{out.stem}_robustness.tif")) as shares:
            found["".join(precision)] = labels.read(1), shares.read()
    # bfloat16 holds 8 bits, float16 11
    for precision, agree, off in (("--bf16", 0.93, 0.02), ("--fp16", 0.99, 0.003)):
        assert (found[precision][0] == found[""][0]).mean() > agree
        assert np.abs(found[precision][1] - found[""][1]).mean() < off
    with pytest.raises(SystemExit, match="2"):
        main([*given, "--output", str(tmp_path / "x.tif"), "--bf16", "--fp16"])
    assert "`--bf16` and `--fp16` exclude each other" in capsys.readouterr().err


def test_raster_in_an_archive_is_named_as_gdal_names_it(checkpoint, tmp_path, capsys):
    values = np.random.default_rng(2).integers(0, 255, (3, HEIGHT, WIDTH)).astype(np.uint8)
    path = write_geotiff(tmp_path / "x.tif", values)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(path, "in/x.tif")
    for name, given in (("plain", path), ("packed", f"/vsizip/{tmp_path}/x.zip/in/x.tif")):
        assert main(["--model", checkpoint, "--rgb", f"{given}:3,2,1", "--output", str(tmp_path / f"{name}.tif")]) == 0
    plain, packed = (np.asarray(Image.open(tmp_path / f"{name}.tif")) for name in ("plain", "packed"))
    assert (plain == packed).mean() > 0.999  # weights that are loaded twice may give other last bits
    capsys.readouterr()
    lost = f"/vsizip/{tmp_path}/x.zip/in/y.tif"
    assert main(["--model", checkpoint, "--rgb", f"{lost}:3,2,1", "--output", str(tmp_path / "lost.tif")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sgma-hf predict: Cannot read {lost}: ") and error.count("\n") == 1
    assert not (tmp_path / "lost.tif").exists()


def test_first_raster_on_the_command_line_is_the_grid(checkpoint, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    rgb = write_geotiff(tmp_path / "rgb.tif", np.full((3, 48, 48), 90, dtype=np.uint8))
    dsm = write_geotiff(tmp_path / "dsm.tif", np.ones((1, 32, 40), dtype=np.float32), left=500008.0)
    out = tmp_path / "map.tif"
    assert main(["--model", checkpoint, "--dsm", dsm, "--rgb", rgb, "--output", str(out)]) == 0
    with rasterio.open(out) as result:
        assert result.shape == (32, 40)
        assert result.transform.c == 500008.0
    assert main(["--model", checkpoint, "--rgb", rgb, "--dsm", dsm, "--output", str(out)]) == 0
    with rasterio.open(out) as result:
        assert result.shape == (48, 48)


def test_a_raster_of_another_scale_needs_a_flag(checkpoint, rasters, tmp_path, capsys):
    files, values = rasters
    out = tmp_path / "maps" / "map.png"
    np.save(tmp_path / "rgb.npy", values["rgb"].astype(np.uint16) * 257)
    arguments = [
        "--model",
        checkpoint,
        "--rgb",
        str(tmp_path / "rgb.npy"),
        "--sar",
        files["sar"],
        "--output",
        str(out),
    ]
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "rgb.npy (rgb): it holds in band " in error and "`--allow_other_scale`" in error
    assert not out.exists()
    assert main([*arguments, "--allow_other_scale"]) == 0 and out.exists()


def test_rasters_that_do_not_overlap_are_named(checkpoint, tmp_path, capsys):
    rgb = write_geotiff(tmp_path / "rgb.tif", np.ones((3, 40, 40), dtype=np.uint8))
    dsm = write_geotiff(tmp_path / "dsm.tif", np.ones((1, 40, 40), dtype=np.float32), left=600000.0)
    out = tmp_path / "map.tif"
    assert main(["--model", checkpoint, "--rgb", rgb, "--dsm", dsm, "--output", str(out)]) == 2
    message = capsys.readouterr().err
    assert "dsm.tif does not overlap" in message
    assert not out.exists()


def test_repeated_flag_adds_a_file(checkpoint, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    left = write_geotiff(tmp_path / "l.tif", np.full((3, 40, 40), 90, dtype=np.uint8))
    right = write_geotiff(tmp_path / "r.tif", np.full((3, 40, 40), 90, dtype=np.uint8), left=500040.0)
    out = tmp_path / "map.tif"
    flags = ["--rgb", left, "--rgb", right, "--extras", "confidence", "--extras", "decision"]
    assert main(["--model", checkpoint, *flags, "--output", str(out)]) == 0
    with rasterio.open(out) as result:
        assert result.shape == (40, 80) and (result.read(1) < 5).all()
    assert (tmp_path / "map_confidence.tif").exists() and (tmp_path / "map_decision.tif").exists()


def test_array_with_channels_first_is_read_as_well(tmp_path):
    sar = np.random.default_rng(0).normal(size=(2, 8, 9)).astype(np.float32)
    sar[:, 0, 0] = np.nan
    np.save(tmp_path / "sar.npy", sar)
    with RasterScene({"sar": tmp_path / "sar.npy"}, channels={"sar": 2}) as scene:
        assert scene.grid.size == (8, 9) and scene.grid.georeference is None
        image = scene.read(0, 0, 8, 9)["sar"]
    np.testing.assert_array_equal(image.data, np.moveaxis(sar, 0, -1))
    assert image.mask.all(2).tolist() == [[True] + [False] * 8] + [[False] * 9] * 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--thermal", "x.tif"], "there is no flag --thermal (the modalities of"),
        (["--rg", "x.tif"], "there is no flag --rg; did you mean --rgb? (the modalities of"),
        (["--rg", "x.tif"], "are --rgb, --dsm, --sar)\n"),
        ([], "no raster given; give at least one of --rgb, --dsm, --sar"),
        (["--rgb", "x.tif", "--shard", "1/2"], "--shard is of many maps, and --scenes is not given"),
        (["--rgb", "x.tif", "--assets", "rgb=visual"], "--assets is of many maps, and --scenes is not given"),
        (["--rgb", "x.tif", "--scene_by", "id"], "--scene_by is of many maps, and --scenes is not given"),
        (["--rgb", "x.tif", "--format", "tif"], "--format is of many maps, and --scenes is not given"),
    ],
)
def test_wrong_flags_are_answered_with_the_modalities(checkpoint, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_info:
        main(["--model", checkpoint, *arguments, "--output", str(tmp_path / "map.png")])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min_confidence", "60"], "`min_confidence` is 60; expected a probability"),
        (["--sieve", "-1"], "`sieve` is -1; expected square metres"),
        (["--batch_size", "0"], "`batch_size` is 0; expected at least 1"),
        (["--tile_size", "32", "--stride", "64"], "Windows of 32 pixels every 64"),
        (["--classes", '["rood"]'], "`--classes` has 'rood'"),
    ],
)
@pytest.mark.parametrize("many", [False, True])
def test_options_are_refused_before_weights_are_read(
    checkpoint, rasters, tmp_path, capsys, monkeypatch, arguments, message, many
):
    def load_model(*_, **__):
        raise AssertionError("the weights were read")

    for module in ("predict", "scene_maps"):
        monkeypatch.setattr(f"sgma_hf.commands.{module}.load_model", load_model)
    (tmp_path / "scenes" / "rgb").mkdir(parents=True)
    (tmp_path / "in.png").rename(tmp_path / "scenes" / "rgb" / "a.png")
    rgb = str(tmp_path / "scenes" / "rgb" / "a.png")
    given = ["--scenes", str(tmp_path / "scenes")] if many else ["--rgb", rgb]
    output = tmp_path / ("maps" if many else "map.png")
    assert main(["--model", checkpoint, *given, "--output", str(output), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("sgma-hf predict: ") and message in said and said.count("\n") == 1
    assert not output.exists()


def test_help_with_a_model_lists_its_modalities(checkpoint, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--model", checkpoint, "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{name} FILE" in text for name in ("rgb", "dsm", "sar"))
    assert "0 to 255 for shares of 0 to 1" in text
    with pytest.raises(SystemExit) as exit_info:
        main(["--help"])
    assert exit_info.value.code == 0
    assert "--<modality> FILE" in capsys.readouterr().out


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.png", b"\x89PNG\r\n\x1a\n broken", "Cannot read"),
        ("gray.png", None, "has 1 bands; modality 'rgb' of this checkpoint takes 3"),
        ("absent.png", b"", "does not exist"),
    ],
)
def test_earlier_files_stay_if_the_run_fails(checkpoint, rasters, tmp_path, capsys, name, content, message):
    source = tmp_path / name
    if content:
        source.write_bytes(content)
    elif content is None:
        Image.fromarray(np.zeros((40, 40), dtype=np.uint8)).save(source)
    outputs = tmp_path / "out"
    assert main(["--model", checkpoint, *flags(rasters[0], "rgb"), "--output", str(outputs / "map.png")]) == 0
    before = snapshot(outputs)
    assert set(before) == {"map.png", *BESIDE, "map_color.png", "map_legend.png", "map_robustness_rgb.png"}
    assert main(["--model", checkpoint, "--rgb", str(source), "--output", str(outputs / "map.png")]) == 2
    assert message in capsys.readouterr().err
    assert snapshot(outputs) == before
    assert sorted(path.name for path in outputs.iterdir()) == sorted(before)  # the hidden folder is gone, too


def test_failure_while_writing_leaves_the_earlier_files(checkpoint, rasters, tmp_path, monkeypatch, capsys):
    files, _ = rasters
    outputs = tmp_path / "out"
    outputs.mkdir()
    (outputs / "map.png").write_bytes(b"earlier")

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sgma_hf.prediction.map_files.colorize", full_disk)  # after the label map, before the rest
    assert main(["--model", checkpoint, *flags(files, "rgb"), "--output", str(outputs / "map.png")]) == 2
    assert "No space left" in capsys.readouterr().err
    assert snapshot(outputs) == {"map.png": b"earlier"}
    assert len(list(outputs.iterdir())) == 1


def test_second_run_replaces_everything_of_the_first(checkpoint, rasters, tmp_path):
    files, _ = rasters
    outputs = tmp_path / "out"
    out = str(outputs / "map.png")
    assert main(["--model", checkpoint, *flags(files, "rgb", "sar"), "--output", out]) == 0
    first = snapshot(outputs)
    assert main(["--model", checkpoint, *flags(files, "rgb"), "--output", out]) == 0
    second = snapshot(outputs)
    assert set(first) - set(second) == {"map_robustness_sar.png"}
    assert first["map_robustness_rgb.png"] != second["map_robustness_rgb.png"]


def test_output_that_cannot_be_written_stops_before_the_work(checkpoint, rasters, tmp_path, capsys, monkeypatch):
    files, _ = rasters

    def work(*args, **kwargs):
        raise AssertionError("the work began")

    monkeypatch.setattr("sgma_hf.rasters.scene.RasterScene.read", work)
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for out, message in (
        (tmp_path / "file" / "map.png", "file"),
        (tmp_path / "folder.png", "is a folder"),
        (tmp_path / "map.jpg", "ends in .png, .tif or .tiff"),
        (files["rgb"], "is also an input"),
    ):
        assert main(["--model", checkpoint, *flags(files, "rgb"), "--output", str(out)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("sgma-hf predict: ") and message in error


def test_without_a_model_it_is_the_model_that_is_missing(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--rgb", "x.tif", "--output", "map.tif"])
    assert capsys.readouterr().err == "sgma-hf predict: the following arguments are required: --model\n"


def test_checkpoint_that_is_none_is_refused(tmp_path, capsys):
    (tmp_path / "here").mkdir()
    assert main(["--model", str(tmp_path / "heer"), "--rgb", "x.png", "--output", "map.png"]) == 2
    assert f"heer: there is no such folder; did you mean {tmp_path / 'here'}?\n" in capsys.readouterr().err
    assert main(["--model", str(tmp_path / "here"), "--rgb", "x.png", "--output", "map.png"]) == 2
    assert "here has no config.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "segformer"}))
    assert main(["--model", str(tmp_path), "--rgb", "x.png", "--output", "map.png"]) == 2
    assert "is a checkpoint of 'segformer'; expected one of SGMA" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("damaged", ["model.safetensors", "config.json"])
@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("predict", ["--rgb", "in.png", "--output", "map.png"]),
        ("evaluate", ["--label", "label.png", "--rgb", "in.png"]),
        ("export", ["--output", "model.pt2"]),
        ("push-to-hub", ["--repo_id", "org/name"]),
    ],
)
def test_a_damaged_checkpoint_is_one_line(checkpoint, rasters, tmp_path, capsys, monkeypatch, command, flags, damaged):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, "model")
    path = tmp_path / "model" / damaged
    path.write_bytes(path.read_bytes()[:200])
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save("label.png")
    assert run_command([command, "--model", "model", *flags]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"sgma-hf {command}: --model model") and said.endswith("Fetch or save it again.")


def test_device_that_is_not_there_is_refused(checkpoint, rasters, tmp_path, capsys):
    for device in ("cuda", "warp"):
        arguments = ["--model", checkpoint, *flags(rasters[0], "rgb"), "--output", str(tmp_path / "map.png")]
        assert main([*arguments, "--device", device]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"sgma-hf predict: `--device {device}` cannot be used: ") and error.count("\n") == 1


def test_model_without_robustness_says_so(rasters, tmp_path, capsys):
    files, _ = rasters
    model = tiny_model(fusion="mean")
    folder = tmp_path / "mean"
    model.save_pretrained(folder)
    SgmaImageProcessor(model.config.modalities, model.config.modality_channels).save_pretrained(folder)
    out = tmp_path / "out" / "map.png"
    assert main(["--model", str(folder), *flags(files, "rgb"), "--output", str(out)]) == 0
    assert "no robustness maps: this checkpoint fuses by 'mean'" in capsys.readouterr().out
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "map.png",
        *BESIDE,
        "map_color.png",
        "map_legend.png",
    ]


def test_tables_of_areas_lie_beside_the_map(checkpoint, tmp_path, capsys):
    rasterio = pytest.importorskip("rasterio")
    values = np.random.default_rng(0).integers(0, 255, (3, HEIGHT, WIDTH)).astype(np.uint8)
    profile = {"driver": "GTiff", "height": HEIGHT, "width": WIDTH, "count": 3, "dtype": "uint8", "crs": UTM}
    with rasterio.open(tmp_path / "a.tif", "w", transform=rasterio.Affine(2, 0, 5e5, 0, -2, 5e6), **profile) as file:
        file.write(values)
    box = [[5e5, 5e6], [500060, 5e6], [500060, 5e6 - 40], [5e5, 5e6 - 40], [5e5, 5e6]]
    feature = {
        "type": "Feature",
        "properties": {"name": "north"},
        "geometry": {"type": "Polygon", "coordinates": [box]},
    }
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32631"}}
    zones = tmp_path / "zones.geojson"
    zones.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]}))
    given = ["--model", checkpoint, "--rgb", str(tmp_path / "a.tif"), "--output", str(tmp_path / "map.tif")]
    assert main([*given, "--areas", "--zones", str(zones), "--zone_by", "name"]) == 0
    rows = json.loads((tmp_path / "map_areas.json").read_text())
    assert [row["name"] for row in rows] == [*CLASSES, None]
    assert sum(row["pixels"] for row in rows) == HEIGHT * WIDTH
    assert sum(row["area_ha"] for row in rows) == pytest.approx(HEIGHT * WIDTH * 4e-4, rel=2e-3)
    lines = (tmp_path / "map_zones.csv").read_text().splitlines()
    assert lines[0] == "zone,class,name,pixels,area_ha,share" and len(lines) == 7
    assert sum(int(line.split(",")[3]) for line in lines[1:]) == 30 * 20
    assert str(tmp_path / "map_zones.json") in capsys.readouterr().out
    polygons = tmp_path / "map.geojson"
    assert main([*given, "--polygons", str(polygons), "--min_area", "8"]) == 0
    found = [feature["properties"] for feature in json.loads(polygons.read_text())["features"]]
    assert found and all(entry["area_m2"] >= 8 and CLASSES[entry["class_id"]] == entry["class"] for entry in found)
    capsys.readouterr()
    assert main([*given, "--polygons", str(tmp_path / "map.kml")]) == 2
    assert "expected a name that ends in .gpkg, .geojson, .fgb" in capsys.readouterr().err
    picture = [*given[:-1], str(tmp_path / "map.png"), "--polygons", str(polygons)]
    assert main(picture) == 2 and "need a map that has a place" in capsys.readouterr().err
    assert main([*given, "--zones", str(zones), "--zone_by", "nam"]) == 2
    assert "has no attribute 'nam'; did you mean name?" in capsys.readouterr().err
