"""Maps from folders of dated rasters, against the model on what rasterio reads; reliance by months and by days."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from raster_scenes import write_tiff
from tiny_models import spread_weights, tiny_model
from torch.nn.functional import interpolate

from sgma_hf import SgmaImageProcessor, predict_raster
from sgma_hf.commands.evaluate import main as evaluate
from sgma_hf.commands.predict import main
from sgma_hf.model.dates_sgma import to_days
from sgma_hf.prediction.maps import MapMaker, WantedMap
from sgma_hf.rasters.scene import dated, expand


NAMES, CHANNELS = ["s2", "s1", "dsm"], [3, 2, 1]
DAYS = {"s2": ["20190302", "20190318", "20190511", "20190702"], "s1": ["20190305", "20190512"]}
SIZE = 64
PERIODS = [365.25, 182.6]


def iso(day):
    return f"{day[:4]}-{day[4:6]}-{day[6:]}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model of random weights that knows dates, and its processor; values are about 0 and of size 1."""
    names = dict(enumerate(["soil", "crop", "wood", "water", "road"]))
    how = {"modalities": NAMES, "modality_channels": CHANNELS, "id2label": names, "tile_size": SIZE}
    model = tiny_model(date_periods=PERIODS, **how)
    spread_weights(model, seed=3)
    zero, one = [[0.0] * count for count in CHANNELS], [[1.0] * count for count in CHANNELS]
    processor = SgmaImageProcessor(
        NAMES, CHANNELS, rescale_factor=1.0, image_mean=zero, image_std=one, reference_level="none", nodata=[[]] * 3
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor


@pytest.fixture
def scene(tmp_path):
    """Dates of two sensors, the third of s2 with a hole, the last beside the left half; a height without a date."""
    rng = np.random.default_rng(0)
    for name, count in (("s2", 3), ("s1", 2)):
        (tmp_path / name).mkdir()
        for number, day in enumerate(DAYS[name]):
            values = rng.normal(size=(count, SIZE, SIZE)).astype(np.float32)
            if (name, number) == ("s2", 2):
                values[:, 8:40, 16:48] = np.nan
            if (name, number) == ("s2", 3):
                values[:, :, : SIZE // 2] = np.nan
            write_tiff(tmp_path / name / f"{day}.tif", values)
    write_tiff(tmp_path / "dsm.tif", rng.normal(size=(1, SIZE, SIZE)).astype(np.float32))
    return tmp_path


def flags(scene, *, s1=True):
    files = ["--s2", str(scene / "s2" / "*.tif"), "--dsm", str(scene / "dsm.tif")]
    return [*files, "--s1", *(str(scene / "s1" / f"{day}.tif") for day in DAYS["s1"])] if s1 else files


def expected(model, scene, days=DAYS):
    """What the model says of what rasterio reads, by hand: slots, masks, dates; and the same by observation."""
    import rasterio

    slots = max(map(len, days.values()))
    pixel_values, mask = torch.zeros(1, slots, 6, SIZE, SIZE), torch.zeros(1, slots, 3, SIZE, SIZE, dtype=torch.bool)
    dates = torch.full((1, slots, 3), torch.nan)
    for m, (name, bands) in enumerate((("s2", slice(0, 3)), ("s1", slice(3, 5)), ("dsm", slice(5, 6)))):
        for slot, day in enumerate(days.get(name, [None])):
            with rasterio.open(scene / name / f"{day}.tif" if day else scene / "dsm.tif") as file:
                values = torch.from_numpy(file.read())
            mask[0, slot, m] = values.isfinite().all(0)
            pixel_values[0, slot, bands] = values.nan_to_num(0)
            if day:
                dates[0, slot, m] = to_days(iso(day))
    with torch.no_grad():
        output = model(pixel_values=pixel_values, modality_mask=mask, dates=dates, output_date_robustness=True)
    return output, mask


def shares_by_hand(output, mask):
    """Shares of reliance, (T, M, H, W): the mean of the stages, none where an observation does not cover."""
    total = 0
    for stage, maps in enumerate(output.date_robustness):
        maps = interpolate(maps[0].float(), scale_factor=4 * 2**stage, mode="bilinear", align_corners=False)
        total = total + maps
    total = total * mask[0]
    return total / total.sum((0, 1), keepdim=True)


def read(path):
    import rasterio

    with rasterio.open(path) as file:
        return file.read()


def described(path):
    """What each band is."""
    import rasterio

    with rasterio.open(path) as file:
        return file.descriptions


def test_a_map_of_folders_is_what_the_model_says_of_all_dates(checkpoint, scene, tmp_path, capsys):
    folder, model, _ = checkpoint
    out = tmp_path / "maps" / "map.tif"
    extras = ["--extras", "robustness", "probabilities", "agreement", "--reliance_by", "month", "day"]
    assert main(["--model", str(folder), *flags(scene), "--output", str(out), *extras]) == 0
    said = capsys.readouterr().out
    assert "s2: 4 dates, 2019-03-02 to 2019-07-02" in said and "s1: 2 dates, 2019-03-05 to 2019-05-12" in said
    output, mask = expected(model, scene)
    logits = interpolate(output.logits, size=(SIZE, SIZE), mode="bilinear", align_corners=False)[0]
    labels = read(out)
    np.testing.assert_allclose(read(out.with_name("map_probabilities.tif")), logits.softmax(0), atol=1e-5)
    assert (labels[0] == logits.argmax(0).numpy()).mean() > 0.999
    shares = shares_by_hand(output, mask)
    robustness = read(out.with_name("map_robustness.tif"))
    assert np.abs(robustness - shares.sum(0).numpy())[:, 48:, :12].max() < 1e-5  # where no date ends
    # By months: March, May and July, and what has no date.
    months = read(out.with_name("map_reliance_month.tif"))
    assert described(out.with_name("map_reliance_month.tif")) == ("2019-03", "2019-05", "2019-07", "undated")
    by_month = [shares[:2, 0].sum(0) + shares[0, 1], shares[2, 0] + shares[1, 1], shares[3, 0], shares[0, 2]]
    np.testing.assert_allclose(months, np.stack(by_month), atol=1e-5)
    np.testing.assert_allclose(months.sum(0), 1, atol=1e-5)
    # By days: no two observations are of one.
    day = read(out.with_name("map_reliance_day.tif"))
    assert day.dtype == np.int32
    sensors = enumerate((DAYS["s2"], DAYS["s1"]))
    observed = [(shares[slot, m], int(day)) for m, days in sensors for slot, day in enumerate(days)]
    stacked = np.stack([share for share, _ in observed])
    best = np.array([number for _, number in observed])[stacked.argmax(0)]
    first, second = np.sort(stacked, axis=0)[-1], np.sort(stacked, axis=0)[-2]
    clear = first - second > 1e-4
    np.testing.assert_array_equal(day[0][clear], best[clear])
    assert clear.mean() > 0.9 and len(np.unique(day)) > 2


def test_the_files_name_their_dates_and_a_changed_date_is_another_run(checkpoint, scene, tmp_path, capsys):
    import rasterio

    folder, _, _ = checkpoint
    out = tmp_path / "map.tif"
    arguments = ["--model", str(folder), *flags(scene, s1=False), "--output", str(out)]
    assert main([*arguments, "--reliance_by", "month"]) == 0
    with rasterio.open(out) as file:
        assert file.tags()["DATES_s2"] == ",".join(f"{iso(day)}T00:00:00" for day in DAYS["s2"])
        assert "DATES_dsm" not in file.tags()
    table = tmp_path / "dates.csv"
    table.write_text("file,date\n20190702.tif,2019-08-02\n")
    capsys.readouterr()
    assert main([*arguments, "--date_table", str(table)]) == 0
    said = capsys.readouterr().out
    assert "s2: 4 dates, 2019-03-02 to 2019-08-02" in said
    assert "removed: it belonged to an earlier map" in said
    assert not out.with_name("map_reliance_month.tif").exists()
    table.write_text("file,date\n20190702.tiff,2019-08-02\n")
    assert main([*arguments, "--date_table", str(table)]) == 2
    assert "none of its 1 entries, such as '20190702.tiff', is one of the files." in capsys.readouterr().err


def test_a_series_with_an_unknown_date_is_mapped_tile_by_tile(checkpoint, scene, tmp_path):
    _, model, processor = checkpoint
    files = [scene / "s2" / f"{day}.tif" for day in DAYS["s2"][:2]]
    given, out = {"s2": files, "s2_dates": [iso(DAYS["s2"][0]), None]}, tmp_path / "map.tif"
    how = {"tile_size": 32, "stride": 32, "extras": ["reliance_month"]}
    found = predict_raster(model, processor, given, out, **how)
    assert found.dates == {"s2": [f"{iso(DAYS['s2'][0])}T00:00:00", None]}
    assert described(tmp_path / "map_reliance_month.tif") == ("2019-03", "undated")


def test_tiles_batches_and_the_order_of_files_do_not_change_a_map(checkpoint, scene, tmp_path):
    _, model, processor = checkpoint
    rasters = dated("s2", expand([str(scene / "s2" / "*.tif")]), [], []) | {"dsm": str(scene / "dsm.tif")}
    turned = {"dsm": rasters["dsm"], "s2": rasters["s2"][::-1], "s2_dates": rasters["s2_dates"][::-1]}
    how = {"tile_size": 32, "stride": 24, "extras": ["probabilities", "reliance_month"]}
    for name, given, batch_size in (("one", rasters, 1), ("many", rasters, 12), ("turned", turned, 1)):
        predict_raster(model, processor, given, tmp_path / f"{name}.tif", batch_size=batch_size, **how)
    for layer in ("probabilities", "reliance_month"):
        first = read(tmp_path / f"one_{layer}.tif")
        for name in ("many", "turned"):
            np.testing.assert_allclose(read(tmp_path / f"{name}_{layer}.tif"), first, atol=1e-4)


def test_turned_tiles_have_the_same_periods(checkpoint, scene, tmp_path):
    _, model, processor = checkpoint
    rasters = dated("s2", expand([str(scene / "s2" / "*.tif")]), [], [])
    how = {"tta": "flips", "extras": ["reliance_month", "probabilities"]}
    predict_raster(model, processor, rasters, tmp_path / "map.tif", **how)
    predict_raster(model, processor, rasters, tmp_path / "plain.tif", extras=["probabilities"])
    months = read(tmp_path / "map_reliance_month.tif")
    np.testing.assert_allclose(months.sum(0), 1, atol=1e-5)
    assert (months[2, :, : SIZE // 2] == 0).all() and (months[3] == 0).all()  # beside July's date; nothing is undated
    assert np.abs(read(tmp_path / "map_probabilities.tif") - read(tmp_path / "plain_probabilities.tif")).max() > 1e-4


def test_a_batch_has_as_many_images_as_tiles_were_asked_for_but_one_tile_at_least(checkpoint, scene, tmp_path):
    _, model, processor = checkpoint
    seen = []

    def note(module, args, kwargs):
        seen.append(tuple(kwargs["pixel_values"].shape[:2]))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        rasters = dated("s2", expand([str(scene / "s2" / "*.tif")]), [], [])
        for batch_size in (1, 8):
            predict_raster(
                model, processor, rasters, tmp_path / "map.tif", tile_size=32, stride=32, batch_size=batch_size
            )
    finally:
        handle.remove()
    # The left tiles have three dates, or fewer, the right ones four.
    assert seen == [(1, 3), (1, 4), (1, 3), (1, 4), (2, 4), (2, 4)]


def test_clouds_of_each_date_hide_that_date(checkpoint, scene, tmp_path):
    import rasterio

    folder, model, _ = checkpoint
    (scene / "scl").mkdir()
    for number, day in enumerate(DAYS["s2"]):
        clouds = np.zeros((1, SIZE, SIZE), np.uint8)
        clouds[0, :, 16 * number : 16 * number + 24] = 9
        write_tiff(scene / "scl" / f"mask_{day}.tif", clouds)
    masks = ["--mask", f"s2={scene / 'scl' / '*.tif'}", "--mask_values", "3,9"]
    out = tmp_path / "masked.tif"
    assert (
        main(["--model", str(folder), *flags(scene), *masks, "--output", str(out), "--extras", "probabilities"]) == 0
    )
    for number, day in enumerate(DAYS["s2"]):  # the same as holes in the files
        with rasterio.open(scene / "s2" / f"{day}.tif", "r+") as file:
            values = file.read()
            values[:, :, 16 * number : 16 * number + 24] = np.nan
            file.write(values)
    output, _ = expected(model, scene)
    logits = interpolate(output.logits, size=(SIZE, SIZE), mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(read(out.with_name("masked_probabilities.tif")), logits.softmax(0), atol=1e-5)


def test_scenes_of_dates_have_a_map_each_and_a_record_of_their_dates(checkpoint, scene, tmp_path, capsys):
    folder, _, _ = checkpoint
    source = tmp_path / "scenes"
    for name in ("a", "b"):
        for day in DAYS["s2"][: 4 if name == "a" else 2]:
            path = source / "s2" / name / f"{day}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((scene / "s2" / f"{day}.tif").read_bytes())
    (source / "dsm").mkdir()
    (source / "dsm" / "a.tif").write_bytes((scene / "dsm.tif").read_bytes())
    out = tmp_path / "maps"
    arguments = ["--model", str(folder), "--scenes", str(source), "--output", str(out), "--reliance_by", "month"]
    assert main(arguments) == 0
    record = json.loads((out / ".scenes" / "records" / "b.json").read_text())
    assert record["dates"] == {"s2": [f"{iso(day)}T00:00:00" for day in DAYS["s2"][:2]]}
    assert described(out / "a_reliance_month.tif") == ("2019-03", "2019-05", "2019-07", "undated")
    assert described(out / "b_reliance_month.tif") == ("2019-03", "undated")
    single = tmp_path / "a.tif"
    files = ["--s2", str(source / "s2" / "a" / "*.tif"), "--dsm", str(source / "dsm" / "a.tif")]
    assert main(["--model", str(folder), *files, "--output", str(single)]) == 0
    # The grid is that of the first modality of the model in a folder, of the first flag on a command line.
    np.testing.assert_array_equal(read(single), read(out / "a.tif"))
    table = tmp_path / "dates.csv"
    table.write_text("file,date\nelsewhere.tif,2019-08-02\n")
    arguments[5] = str(tmp_path / "others")
    assert main([*arguments, "--date_table", str(table)]) == 2
    assert "none of its 1 entries, such as 'elsewhere.tif', is one of the files." in capsys.readouterr().err
    assert not (tmp_path / "others").exists()


def test_a_run_that_died_goes_on_where_a_date_is_not_known(checkpoint, scene, tmp_path):
    _, model, processor = checkpoint
    files = expand([str(scene / "s2" / "*.tif")])
    rasters = {"s2": files, "s2_dates": [None, *(iso(day) for day in DAYS["s2"][1:])]}
    how = {"tile_size": 32, "stride": 32, "extras": ["probabilities"]}
    predict_raster(model, processor, rasters, tmp_path / "whole.tif", **how)
    calls = []

    def stop(module, args):
        calls.append(0)
        if len(calls) > 2:
            raise OSError("the disk is gone")

    handle = model.register_forward_pre_hook(stop)
    try:
        with pytest.raises(OSError, match="the disk is gone"):
            predict_raster(model, processor, rasters, tmp_path / "map.tif", **how)
    finally:
        handle.remove()
    predict_raster(model, processor, rasters, tmp_path / "map.tif", resume=True, **how)
    for name in ("", "_probabilities"):
        np.testing.assert_allclose(read(tmp_path / f"map{name}.tif"), read(tmp_path / f"whole{name}.tif"), atol=1e-4)


def test_scores_of_a_scene_are_those_of_the_maps_of_its_dates(checkpoint, scene, tmp_path):
    folder, _, _ = checkpoint
    truth = np.random.default_rng(1).integers(0, 5, (1, SIZE, SIZE)).astype(np.uint8)
    write_tiff(tmp_path / "truth.tif", truth)
    scored = ["--label", str(tmp_path / "truth.tif"), "--output", str(tmp_path / "scores.json")]
    assert evaluate(["--model", str(folder), *flags(scene, s1=False), *scored]) == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    assert sorted(found["combinations"]) == ["dsm", "s2", "s2+dsm"]
    assert main(["--model", str(folder), *flags(scene, s1=False)[:2], "--output", str(tmp_path / "s2.tif")]) == 0
    predicted = read(tmp_path / "s2.tif")
    there = predicted < 255
    confusion = np.zeros((5, 5), int)
    np.add.at(confusion, (truth[there], predicted[there]), 1)
    ious = np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion))
    assert found["combinations"]["s2"]["miou"] == pytest.approx(ious.mean(), abs=1e-3)


def test_what_cannot_be_meant_is_refused_before_the_weights_are_read(checkpoint, scene, tmp_path, capsys):
    folder, _, processor = checkpoint
    static = tmp_path / "static"
    tiny_model(modalities=NAMES, modality_channels=CHANNELS).save_pretrained(static)
    processor.save_pretrained(static)
    capsys.readouterr()
    (scene / "s2" / "again.tif").write_bytes((scene / "s2" / "20190302.tif").read_bytes())
    table = tmp_path / "dates.csv"
    table.write_text("file,date\nx,2019-08-02\n")
    pattern, out = str(scene / "s2" / "*.tif"), ["--output", str(tmp_path / "map.tif")]
    cases = [
        (folder, ["--s2", pattern], "Nobody says when"),
        (folder, ["--s2", str(scene / "s2" / "*.jp2")], "No raster is named as"),
        (static, ["--s2", pattern, "--date_table", str(table)], "this checkpoint knows no dates"),
        (static, ["--dsm", str(scene / "dsm.tif"), "--reliance_by", "month"], "'reliance_month' is by dates"),
        (folder, ["--dsm", str(scene / "dsm.tif"), "--date_table", "half"], "There is no half; expected a table"),
    ]
    for checkpoint_folder, arguments, message in cases:
        assert main(["--model", str(checkpoint_folder), *arguments, *out]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert not Path(out[1]).exists()


def test_a_model_without_dates_takes_a_series_as_a_set(checkpoint, scene, tmp_path):
    _, _, processor = checkpoint
    static = spread_weights(tiny_model(modalities=NAMES, modality_channels=CHANNELS, tile_size=SIZE), seed=3)
    rasters = dated("s2", expand([str(scene / "s2" / "*.tif")]), [], [])
    wanted = WantedMap(nullcontext(rasters), tmp_path / "map.tif", extras=["probabilities"])
    ((_, made),) = MapMaker(static, processor).make([wanted])
    assert made.dates["s2"] == [f"{iso(day)}T00:00:00" for day in DAYS["s2"]]
    days = {"s2": DAYS["s2"]}
    slots = torch.zeros(1, 4, 6, SIZE, SIZE), torch.zeros(1, 4, 3, SIZE, SIZE, dtype=torch.bool)
    for slot, day in enumerate(days["s2"]):
        values = torch.from_numpy(read(scene / "s2" / f"{day}.tif"))
        slots[1][0, slot, 0], slots[0][0, slot, :3] = values.isfinite().all(0), values.nan_to_num(0)
    with torch.no_grad():
        logits = static(*slots).logits
    logits = interpolate(logits, size=(SIZE, SIZE), mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(read(tmp_path / "map_probabilities.tif"), logits.softmax(0), atol=1e-5)
