"""What the page shows is what `predict` writes, `explain_pixel` says and the truth holds."""

import base64
import io
import re
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
import torch
from app_scenes import (
    COLORS,
    DAYS,
    HEIGHT,
    NAMES,
    WIDTH,
    app_model,
    app_processor,
    dated_app_model,
    predicted,
    predicted_from,
    write_app_scenes,
    write_dated_scene,
)
from PIL import Image
from raster_scenes import write_tiff
from tiny_dataset import write_dataset
from tiny_models import tiny_model

from sgma_hf.app.answers import answer, explain, scores
from sgma_hf.app.panels import panels
from sgma_hf.app.sights import LABEL, Sights, View, with_dates
from sgma_hf.data.class_maps import ClassMap
from sgma_hf.data.windows import Window
from sgma_hf.rasters.listings.sources import list_rows, list_scenes
from sgma_hf.visualization.palette import class_palette, colorize


rasterio = pytest.importorskip("rasterio")


@pytest.fixture(scope="module")
def model():
    return app_model()


@pytest.fixture(scope="module")
def processor():
    return app_processor()


@pytest.fixture
def scene(tmp_path):
    write_app_scenes(tmp_path / "scenes")
    return tmp_path / "scenes" / "a"


@pytest.fixture
def sights(model, processor, scene):
    scenes = list_scenes(scene.parent, [*NAMES, LABEL])
    return Sights(model, processor, scenes, allow_other_scale=True)


@pytest.mark.parametrize("names", [NAMES, ["rgb", "dsm"], ["dsm", "sar"], ["dsm"]])
def test_the_maps_are_those_of_predict_from_as_many_files(model, processor, scene, sights, names):
    sight = sights.look(View("a"))
    assert len(sight.encoded) == 4  # tiles of 64 pixels, which overlap
    found = answer(model, processor, sight, names, with_agreement=True)
    expected = predicted(model, processor, scene, names)
    assert (found.labels == expected["labels"][0]).mean() > 0.999  # ties aside
    close = {"atol": 1e-3, "rtol": 0, "equal_nan": True}
    np.testing.assert_allclose(found.confidence, expected["confidence"][0], **close)
    assert list(found.reliance) == list(found.agreement) == names
    for index, name in enumerate(names):
        np.testing.assert_allclose(found.reliance[name], expected["robustness"][index], **close)
        if len(names) > 1:
            np.testing.assert_allclose(found.agreement[name], expected["agreement"][index], **close)
    if names == ["dsm"]:
        assert (found.labels[:10] == 255).all() and np.isnan(found.confidence[:10]).all()


def test_a_gap_is_missing_data_and_stays_where_it_was_cut(model, processor, scene, sights):
    view = View("a", gaps=(("rgb", Window(16, 24, 40, 48)),))
    found = answer(model, processor, sights.look(view), NAMES, with_agreement=False)
    with rasterio.open(scene / "rgb.tif") as file:
        values = file.read()
    valid = np.full((HEIGHT, WIDTH), 255, np.uint8)
    valid[16:56, 24:72] = 0
    cut = write_tiff(scene.parent / "cut.tif", values, mask=valid)
    expected = predicted(model, processor, scene, NAMES, rgb=cut)
    assert (found.labels == expected["labels"][0]).mean() > 0.999
    np.testing.assert_allclose(found.reliance["rgb"], expected["robustness"][0], atol=1e-3)
    assert not found.reliance["rgb"][16:56, 24:72].any()
    # a smaller part that is moved shows the same pixels as missing
    part = Sights(model, processor, list(sights.scenes.values()), side=64, allow_other_scale=True)
    sight = part.look(replace(view, top=10, left=1000))
    assert (sight.scene_size, sight.window) == ((HEIGHT, WIDTH), Window(10, 32, 64, 64))
    assert sight.images["rgb"][0].mask[..., 0].nonzero()[0].min() == 6
    assert sight.images["rgb"][0].mask[..., 0].sum() == 40 * 40
    assert sight.truth.shape == (64, 64)


def test_truth_scores_and_words(model, processor, scene, sights):
    sight = sights.look(View("a"))
    with rasterio.open(scene / "label.tif") as file:
        truth = file.read(1)
    np.testing.assert_array_equal(sight.truth, truth)
    found = answer(model, processor, sight, ["rgb", "dsm"], with_agreement=False)
    counted = (truth != 255) & (found.labels != 255)
    scored = scores(sight, found, 5)
    assert scored["accuracy"] == pytest.approx((found.labels == truth)[counted].mean())
    both = ((found.labels == 2) & (truth == 2) & counted).sum()
    either = (((found.labels == 2) | (truth == 2)) & counted).sum()
    assert scored["iou"][2] == pytest.approx(both / either if either else None)
    lines = explain(model, sight, ["rgb", "dsm"], found, (70, 12))
    share = found.confidence[12, 70]
    assert lines[0].startswith(f"Pixel x 70, y 12 is {model.config.class_names[found.labels[12, 70]]} (")
    assert abs(int(re.search(r"\((\d+)%\)", lines[0])[1]) / 100 - share) < 0.1  # one tile against a blend of two
    assert lines[-1] == f"The truth is {model.config.class_names[truth[12, 70]]}."
    assert any(line.startswith("Without dsm it would ") for line in lines)
    assert "sar" not in " ".join(lines)
    assert "Nothing but rgb covers it." in explain(model, sight, ["rgb", "dsm"], found, (70, 2))  # no height there
    alone = answer(model, processor, sight, ["dsm"], with_agreement=False)
    with pytest.raises(ValueError, match="Nothing that is switched on covers pixel x 70, y 2"):
        explain(model, sight, ["dsm"], alone, (70, 2))


def test_pictures_show_the_maps_to_the_pixel(model, processor, sights):
    sight = sights.look(View("a"))
    found = answer(model, processor, sight, ["rgb", "dsm"], with_agreement=True)
    html = panels(model.config, sight, found, ["rgb", "dsm"], (5, 6))
    pictures = {
        alt: np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))
        for data, alt in re.findall(r'src="data:image/\w+;base64,([^"]+)" alt="([^"]+)"', html)
    }
    reliance = ["reliance rgb", "agreement rgb", "dsm", "reliance dsm", "agreement dsm", "sar"]
    assert list(pictures) == ["map", "truth", "errors", "confidence", "rgb", *reliance]
    for name, ids in (("map", found.labels), ("truth", sight.truth)):
        np.testing.assert_array_equal(pictures[name][ids != 255, :3], colorize(ids, COLORS)[ids != 255])
        np.testing.assert_array_equal(pictures[name][..., 3] == 0, ids == 255)
    wrong = (found.labels != sight.truth) & (sight.truth != 255)
    np.testing.assert_array_equal((pictures["errors"][..., :3] == [213, 94, 0]).all(-1) & (sight.truth != 255), wrong)
    np.testing.assert_array_equal(pictures["dsm"][..., 3] == 0, sight.images["dsm"][0].mask[..., 0])
    assert html.count("switched off") == 1
    uncovered = panels(
        model.config, sight, answer(model, processor, sight, ["dsm"], with_agreement=False), ["dsm"], None
    )
    (errors,) = re.findall(r'base64,([^"]+)" alt="errors"', uncovered)
    errors = np.array(Image.open(io.BytesIO(base64.b64decode(errors))).convert("RGBA"))
    assert not errors[:10, :, 3].any() and errors[10:, 20:, 3].all()  # a pixel without a class is no error
    assert "--x: 5.729%" in html  # of the middle of pixel 5 of 96
    shares = [float(cell) for cell in re.findall(r'<td class="number">([\d.]+)%</td>', html)]
    assert shares[0] == pytest.approx(100 * (found.labels == 0).mean(), abs=0.06)


def test_names_of_classes_are_text(model, processor, sights):
    sight = sights.look(View("a"))
    found = answer(model, processor, sight, NAMES, with_agreement=False)
    config = tiny_model(id2label=dict(enumerate(["<i>a", "b", "c", "d", "e"]))).config
    html = panels(config, sight, found, NAMES, None)
    assert "&lt;i&gt;a" in html and "<i>a" not in html
    assert class_palette(config.class_names)  # colours without a palette in the checkpoint


def test_a_scene_without_truth_and_a_modality(model, processor, sights):
    sight = sights.look(View("b"))
    assert sight.truth is None and sight.note == ""
    found = answer(model, processor, sight, NAMES, with_agreement=True)
    assert list(found.agreement) == ["rgb", "dsm"] and scores(sight, found, 5) is None
    html = panels(model.config, sight, found, NAMES, None)
    assert "missing here" in html and "truth" not in html and "IoU" not in html
    with pytest.raises(ValueError, match="Switch a modality on"):
        answer(model, processor, sight, ["sar"], with_agreement=False)


def test_labels_are_read_as_in_training_and_bad_ones_are_a_note(model, processor, scene, sights):
    path = str(scene / "rgb.tif")
    values = np.full((1, HEIGHT, WIDTH), 7, np.uint8)
    label = write_tiff(scene.parent / "sevens.tif", values)
    view = View(files=(("rgb", path), (LABEL, label)))
    sight = sights.look(view)
    assert sight.truth is None and "sevens.tif" in sight.note and "7" in sight.note
    answer(model, processor, sight, NAMES, with_agreement=False)
    entries = [{"name": f"LABEL_{index}", "value": index + 4} for index in range(5)]
    mapped = Sights(model, processor, classes=ClassMap.of_entries(entries), allow_other_scale=True)
    assert (mapped.look(view).truth == 3).all()


def test_files_handed_in_are_refused_by_what_they_hold(sights, tmp_path):
    path = tmp_path / "rgb.tif"
    for content in (b"", b"no picture", b"<VRTDataset rasterXSize='1' rasterYSize='1'></VRTDataset>"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"rgb\.tif is no TIFF, PNG, JPEG or \.npy file"):
            sights.look(View(files=(("rgb", str(path)),)))
    path.write_bytes(b"II*\0" + bytes(60))
    with pytest.raises(ValueError, match=r"rgb\.tif"):
        sights.look(View(files=(("rgb", str(path)),)))


def test_an_encoding_is_made_once(model, sights, monkeypatch):
    calls = []
    encode = type(model).encode
    monkeypatch.setattr(type(model), "encode", lambda *args, **kwargs: calls.append(1) or encode(*args, **kwargs))
    for names in (NAMES, ["rgb"], ["dsm", "sar"]):
        answer(model, sights.processor, sights.look(View("b")), names[:2], with_agreement=True)
    assert len(calls) == 4  # a tile each
    assert torch.is_grad_enabled()


def test_rows_of_a_data_set_are_seen_with_their_labels(model, processor, tmp_path):
    generator = np.random.default_rng(0)
    images = {
        "rgb": generator.integers(1, 255, (64, 64, 3)).astype(np.uint8),
        "dsm": generator.uniform(90, 130, (64, 64)).astype(np.float32),
        "sar": None,
    }
    label = generator.integers(0, 2, (64, 64)).astype(np.uint8)
    write_dataset(tmp_path, [("first", images, label), ("second", images | {"dsm": None}, None)])
    rows = list_rows(str(tmp_path), [*NAMES, LABEL])
    assert [row.name for row in rows] == ["first", "second"]
    sights = Sights(model, processor, rows, classes=ClassMap.of_entries([{"name": "other", "value": 9}]))
    sight = sights.look(View("first"))
    np.testing.assert_array_equal(sight.truth, label)  # these are ids, whatever the values of rasters mean
    with torch.no_grad():
        outputs = model(**processor(images))
    expected = processor.post_process_semantic_segmentation(outputs)[0].numpy()
    assert (answer(model, processor, sight, NAMES, with_agreement=False).labels == expected).mean() > 0.999
    assert sights.look(View("second")).truth is None and list(sights.look(View("second")).images) == ["rgb"]


@pytest.fixture
def dated_model():
    return dated_app_model()


@pytest.fixture
def dated_scenes(tmp_path):
    write_dated_scene(tmp_path / "scenes")
    return list_scenes(tmp_path / "scenes", [*NAMES, LABEL], dated=True)


def test_a_series_is_predicted_from_all_its_dates_and_one_is_shown(processor, dated_model, dated_scenes, tmp_path):
    sight = Sights(dated_model, processor, dated_scenes, allow_other_scale=True).look(View("a"))
    assert len(sight.images["rgb"]) == 3 and len(sight.images["dsm"]) == 1 and (sight.truth == 1).all()
    found = answer(dated_model, processor, sight, NAMES, with_agreement=True)
    labels, _ = predicted_from(dated_model, processor, tmp_path / "scenes" / "a", DAYS)
    assert (labels == found.labels).mean() > 0.999
    html = panels(dated_model.config, sight, found, NAMES, None)
    assert "3 dates; this is 2019-05-11" in html
    assert any(line.startswith("Of 3 dates of rgb ") for line in explain(dated_model, sight, NAMES, found, (9, 9)))
    # a gap hides all dates
    gap = View("a", gaps=(("rgb", Window(0, 0, 64, 64)),))
    hidden = Sights(dated_model, processor, dated_scenes, allow_other_scale=True).look(gap)
    alone = answer(dated_model, processor, hidden, NAMES, with_agreement=False)
    np.testing.assert_allclose(alone.reliance["dsm"], 1, atol=1e-6)


@pytest.mark.parametrize("kept", [(0,), (1, 2), (0, 2), ()])
def test_the_map_of_some_dates_is_that_of_predict_from_their_files(
    processor, dated_model, dated_scenes, tmp_path, kept, monkeypatch
):
    sights = Sights(dated_model, processor, dated_scenes, allow_other_scale=True)
    every = sights.look(View("a"))
    monkeypatch.setattr(type(dated_model), "encode", None)  # nothing is encoded anew
    assert every.moments == [("rgb", datetime.strptime(day, "%Y%m%d")) for day in DAYS]
    off = [index for index in range(3) if index not in kept]
    view = with_dates(View("a"), every, off, [2])
    sight = sights.look(view)
    found = answer(dated_model, processor, sight, NAMES, with_agreement=True)
    monkeypatch.undo()
    whole = answer(dated_model, processor, every, NAMES, with_agreement=False)
    labels, expected = predicted_from(
        dated_model, processor, tmp_path / "scenes" / "a", [DAYS[index] for index in kept]
    )
    assert (labels == found.labels).mean() > 0.999 and (labels != whole.labels).any()
    for name, share in expected.reliance.items():
        assert np.nanmean(found.reliance[name]) == pytest.approx(share, abs=1e-4)
    assert [share > 0 for share in found.by_date.values()] == [index in kept for index in range(3)]
    assert sum(found.by_date.values()) == pytest.approx(expected.reliance.get("rgb", 0), abs=1e-4)
    html = panels(dated_model.config, sight, found, NAMES, None)
    assert "3 dates; this is 2019-07-02" in html
    assert re.findall(r'<input type="checkbox" value="(\d)" checked', html) == [str(index) for index in kept]
    assert html.count("disabled") == (len(kept) == 1)
    shares = re.findall(r'counts"></td><td class="number">([\d.]*%?)<', html)
    assert shares == [f"{found.by_date[every.moments[i]]:.1%}" if i in kept else "" for i in range(3)]
    words = explain(dated_model, sight, NAMES, found, (9, 9))
    assert any(line.startswith(f"Of {len(kept)} dates of rgb ") for line in words) == (len(kept) > 1)
    assert with_dates(view, every, [], [1]) == View("a") and not with_dates(view, every, [], [1]).off
    elsewhere = replace(every, dates={"rgb": every.dates["rgb"][:1]})  # what is not there stays as it was
    assert with_dates(view, elsewhere, [], []).off == view.off - {every.moments[0]}


def test_two_files_of_one_date_are_one_choice_and_one_picture(processor, dated_model, dated_scenes, tmp_path):
    folder, halves = tmp_path / "scenes" / "a", np.full((64, 64), 255, np.uint8)
    with rasterio.open(folder / "rgb_20190511.tif") as file:
        values = file.read()
    halves[:, 32:] = 0
    write_tiff(folder / "rgb_20190511.tif", values, mask=halves)
    east = write_tiff(folder / "rgb_20190511_east.tif", values, mask=255 - halves)
    rasters = dated_scenes[0].rasters | {"rgb": [*dated_scenes[0].rasters["rgb"], east]}
    scenes = [replace(dated_scenes[0], rasters=rasters)]
    sight = Sights(dated_model, processor, scenes, allow_other_scale=True).look(View("a"))
    assert len(sight.images["rgb"]) == 4 and len(sight.moments) == 3
    picture = np.array(Image.open(io.BytesIO(sight.picture("rgb"))).convert("RGBA"))
    assert (picture[..., 3] == 255).all()
    found = answer(
        dated_model, processor, replace(sight, off=frozenset(sight.moments[1:2])), NAMES, with_agreement=False
    )
    labels, _ = predicted_from(dated_model, processor, folder, [DAYS[0], DAYS[2]])
    assert (labels == found.labels).mean() > 0.999
