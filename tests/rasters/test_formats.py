"""What GDAL reads is read by convert, predict and evaluate alike, by whatever name GDAL knows it."""

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest
from file_server import serve
from PIL import Image
from raster_scenes import UTM, height_classes, predict_height_classes, write_tiff

from sgma_hf import decode_row, load_rows
from sgma_hf.commands import main
from sgma_hf.converters.raster_folders import ConversionOptions, convert_rasters
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.evaluation.scenes import score_map
from sgma_hf.rasters.files import read_info, read_raster
from sgma_hf.rasters.scene import RasterInput, RasterScene


rasterio = pytest.importorskip("rasterio")
pytest.importorskip("rasterio.shutil")

CHANNELS = {"dsm": 1, "rgb": 3}
LOCAL = 'LOCAL_CS["Local Coordinates (m)",LOCAL_DATUM["Local Datum",0],UNIT["metre",1,AUTHORITY["EPSG","9001"]]]'
NETCDF = {"FORMAT": "NC4", "WRITE_BOTTOMUP": "NO"}  # HDF5 does not say which row comes first
FORMATS = {
    "a.tif": ("COG", {}),
    "a.jp2": ("JP2OpenJPEG", {"QUALITY": "100", "REVERSIBLE": "YES"}),
    "a.img": ("HFA", {}),
    "a.vrt": ("VRT", {}),
    "a.asc": ("AAIGrid", {}),
    "a.dat": ("ENVI", {}),
    "a.bsq": ("ENVI", {}),
    "a": ("ENVI", {}),
    "a.bil": ("EHdr", {}),
    "a.nc": ("netCDF", NETCDF),
    "a.h5": ("netCDF", NETCDF),
    "a.png": ("PNG", {}),
    "a.ntf": ("NITF", {}),
    "a.rst": ("RST", {}),
    "a.sdat": ("SAGA", {}),
    "a.pix": ("PCIDSK", {}),
    "a.xyz": ("XYZ", {}),
}


def heights(size=(16, 24), seed=0):
    """Class ids (H, W), and heights in metres of which `HeightClasses` makes them."""
    ids = np.random.default_rng(seed).integers(0, 3, size).astype(np.uint8)
    return ids, np.array([5, 10, 15], dtype=np.uint8)[ids]


def write_as(path, values, driver, options, **profile):
    """Write (H, W) in a format of GDAL's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = write_tiff(path.with_name("plain.tif"), values[None], **profile)
    target = path.with_suffix(".nc") if driver == "netCDF" else path
    with rasterio.open(plain) as source:
        rasterio.shutil.copy(source, target, driver=driver, **options)
    target.rename(path)
    if driver != "VRT":
        path.with_name("plain.tif").unlink()
    else:
        path.with_name("plain.tif").rename(path.with_name(".plain.tif"))
        path.write_text(path.read_text().replace("plain.tif", ".plain.tif"))
    return path


def map_of(prediction):
    return read_raster(prediction.files["labels"], palette_as_indices=True).values[..., 0]


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_read_by_convert_predict_and_evaluate(tmp_path, name):
    driver, options = FORMATS[name]
    ids, values = heights()
    dsm = write_as(tmp_path / "source" / "dsm" / name, values, driver, options)
    label = write_as(tmp_path / "source" / "label" / name, ids, driver, options)

    convert_rasters(tmp_path / "source", tmp_path / "rows", ["dsm"])
    (row,) = load_rows(tmp_path / "rows", "train")
    images, found = decode_row(row, ["dsm"])
    np.testing.assert_array_equal(images["dsm"], values)
    np.testing.assert_array_equal(found, ids)

    prediction = predict_height_classes({"dsm": str(dsm)}, tmp_path / "map.tif")
    np.testing.assert_array_equal(map_of(prediction), ids)

    scores = score_map(tmp_path / "map.tif", label, 3)
    assert scores["accuracy"] == 1 and scores["uncovered_share"] == 0


def test_sidecars_and_documents_are_no_rasters(tmp_path):
    ids, values = heights()
    for folder, array in (("dsm", values), ("label", ids)):
        write_as(tmp_path / "source" / folder / "a.img", array, "HFA", {})
        for suffix in ("hdr", "prj", "tfw", "txt", "aux.xml", "img.aux.xml", "img.ovr", "pdf", "kml"):
            (tmp_path / "source" / folder / f"a.{suffix}").write_text("")
    convert_rasters(tmp_path / "source", tmp_path / "rows", ["dsm"])
    assert len(load_rows(tmp_path / "rows", "train")) == 1


@pytest.fixture
def named(tmp_path):
    """A file with names that only GDAL understands, and what it holds (H, W, 3)."""
    values = np.random.default_rng(3).integers(0, 255, (3, 16, 24)).astype(np.uint8)
    path = write_tiff(tmp_path / "x.tif", values)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(path, "in/x.tif")
    (tmp_path / "x.tif.gz").write_bytes(gzip.compress((tmp_path / "x.tif").read_bytes()))
    with rasterio.open(path) as source:
        rasterio.shutil.copy(source, tmp_path / "x.nc", driver="netCDF", **NETCDF)
    return tmp_path, np.moveaxis(values, 0, -1)


def read_scene(name, channels):
    with RasterScene({"x": name}, channels={"x": channels}) as scene:
        return scene.read(0, 0, *scene.grid.size)["x"]


@pytest.mark.parametrize("name", ["/vsizip/{}/x.zip/in/x.tif", "zip://{}/x.zip!in/x.tif", "/vsigzip/{}/x.tif.gz"])
def test_files_in_archives_are_read_where_they_are(named, monkeypatch, name):
    folder, values = named
    name = name.format(folder)
    np.testing.assert_array_equal(read_scene(name, 3), values)
    np.testing.assert_array_equal(read_scene(f"{name}:3,1", 2), values[..., [2, 0]])
    archive = "x.tif.gz" if "gzip" in name else "x.zip"
    assert RasterInput.parse(name).files == [folder / archive]
    monkeypatch.chdir(folder)
    np.testing.assert_array_equal(read_scene("/vsizip/x.zip/in/x.tif", 3), values)


def test_subdatasets_are_read_by_name(named, monkeypatch):
    folder, values = named
    np.testing.assert_array_equal(read_scene(f"NETCDF:{folder}/x.nc:Band2", 1), values[..., [1]])
    np.testing.assert_array_equal(read_scene(f'NETCDF:"{folder}/x.nc":Band2:1', 1), values[..., [1]])
    np.testing.assert_array_equal(read_scene(f"HDF5:{folder}/x.nc://Band3", 1), values[..., [2]])
    assert RasterInput.parse(f"NETCDF:{folder}/x.nc:Band2").files == [folder / "x.nc"]
    with pytest.raises(ValueError, match=r"x\.nc holds several rasters\. Give the name.*-of VRT.*Band1 or .*Band2"):
        read_info(folder / "x.nc")
    with pytest.raises(ValueError, match=r"Cannot read HDF4_SDS:x: the installed GDAL has no driver HDF4"):
        RasterInput.parse("HDF4_SDS:x")
    (folder / "x.kea").write_bytes(b"KEA")
    with pytest.raises(ValueError, match=r"Cannot read .*x\.kea: the installed GDAL has no driver KEA"):
        read_info(folder / "x.kea")


def test_what_is_no_band_is_said(named):
    folder, _ = named
    with pytest.raises(ValueError, match=r"'1-3' are no bands; expected such as .*x\.tif:1,2,3"):
        RasterInput.parse(f"{folder}/x.tif:1-3")
    with pytest.raises(ValueError, match=r"y\.tif:1-3' does not exist|Cannot read .*y\.tif:1-3: .*No such file"):
        RasterInput.parse("y.tif:1-3")


def test_one_page_is_read_by_name(tmp_path):
    pages = [np.full((4, 4), 7, dtype=np.uint8), np.full((2, 2), 9, dtype=np.uint8)]
    images = [Image.fromarray(page) for page in pages]
    images[0].save(tmp_path / "x.tif", save_all=True, append_images=images[1:])
    assert read_scene(f"GTIFF_DIR:2:{tmp_path}/x.tif", 1).tolist() == [[[9], [9]], [[9], [9]]]
    with pytest.raises(ValueError, match="is also an input"):
        predict_height_classes({"dsm": f"GTIFF_DIR:1:{tmp_path}/x.tif"}, tmp_path / "x.tif")


@pytest.mark.parametrize("ranges", [True, False])
def test_files_of_a_server_are_read_where_they_are(named, ranges):
    folder, values = named
    _, dsm = heights()
    write_tiff(folder / "dsm.tif", dsm[None])
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(values).save(folder / "x.jpg", exif=turned, subsampling=0)
    with serve(folder, ranges=ranges) as address:
        np.testing.assert_array_equal(read_scene(f"http://{address}/x.tif", 3), values)
        np.testing.assert_array_equal(read_scene(f"/vsicurl/http://{address}/x.tif:2", 1), values[..., [1]])
        np.testing.assert_array_equal(read_scene(f"/vsizip//vsicurl/http://{address}/x.zip/in/x.tif", 3), values)
        picture = read_scene(f"http://{address}/x.jpg", 3).data.astype(int)
        assert np.abs(picture - read_raster(folder / "x.jpg").values).max() <= 2  # two decoders
        prediction = predict_height_classes({"dsm": f"http://{address}/dsm.tif"}, folder / "map.tif")
        np.testing.assert_array_equal(map_of(prediction), height_classes(dsm))
        scores = score_map(f"http://{address}/map.tif", f"http://{address}/map.tif", 3)
        assert scores["accuracy"] == 1
        classes = '["low", "middle", "high"]'
        argv = ["--map", f"http://{address}/map.tif", "--label", f"http://{address}/map.tif:1", "--classes", classes]
        assert main(["evaluate", *argv, "--output", str(folder / "scores.json")]) in (0, None)
        with pytest.raises(ValueError, match=rf"^Cannot read http://{address}/no\.tif: HTTP response code: 404$"):
            RasterInput.parse(f"http://{address}/no.tif")


def test_large_file_of_a_server_without_ranges_is_refused_with_a_name_that_works(tmp_path):
    values = np.random.default_rng(4).integers(0, 255, (1, 600, 600)).astype(np.uint8)
    write_tiff(tmp_path / "x.tif", values, tiled=True)
    with serve(tmp_path, ranges=False) as address:
        with pytest.raises(ValueError, match=r"Range downloading.*name it (/vsicurl_streaming/\S+),") as caught:
            RasterInput.parse(f"http://{address}/x.tif")
        name = str(caught.value).split("name it ")[1].split(",")[0]
        np.testing.assert_array_equal(read_scene(name, 1)[..., 0], values[0])


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_buckets_are_read_as_the_environment_says(named, monkeypatch, scheme):
    folder, values = named
    (folder / "bucket").mkdir()
    (folder / "x.tif").rename(folder / "bucket" / f"{scheme}.tif")
    with serve(folder) as address:
        settings = {"AWS_S3_ENDPOINT": address, "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE"}
        settings |= {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
        settings |= {
            "AWS_NO_SIGN_REQUEST": "YES",
            "GS_NO_SIGN_REQUEST": "YES",
            "CPL_GS_ENDPOINT": f"http://{address}/",
        }
        azure = f"DefaultEndpointsProtocol=http;AccountName=a;AccountKey=a2V5;BlobEndpoint=http://{address}"
        settings |= {"AZURE_STORAGE_CONNECTION_STRING": azure}
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        np.testing.assert_array_equal(read_scene(f"{scheme}://bucket/{scheme}.tif:1,2", 2), values[..., :2])


def test_missing_remote_file_is_one_line(tmp_path, capsys):
    write_tiff(tmp_path / "label.tif", heights()[0][None])
    with serve(tmp_path) as address:
        argv = ["evaluate", "--map", f"http://{address}/no.tif", "--label", str(tmp_path / "label.tif")]
        assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no.tif: HTTP response code: 404" in error


def test_local_coordinates_are_a_place_if_all_files_share_them(tmp_path):
    ids, values = heights()
    for name, array in (("dsm", values), ("label", ids)):
        write_as(tmp_path / "source" / name / "a.tif", array, "GTiff", {}, crs=LOCAL)
    fine = write_tiff(tmp_path / "fine.tif", np.kron(values, np.ones((2, 2), np.uint8))[None], crs=LOCAL, pixel=0.5)
    convert_rasters(tmp_path / "source", tmp_path / "rows", ["dsm"])
    np.testing.assert_array_equal(decode_row(load_rows(tmp_path / "rows", "train")[0], ["dsm"])[0]["dsm"], values)
    options = {"like": tmp_path / "source/label/a.tif", "resampling": "nearest"}
    prediction = predict_height_classes({"dsm": fine}, tmp_path / "map.tif", **options)
    np.testing.assert_array_equal(map_of(prediction), ids)
    assert "Local Coordinates" in rasterio.open(tmp_path / "map.tif").crs.to_wkt()
    assert score_map(tmp_path / "map.tif", tmp_path / "source/label/a.tif", 3)["accuracy"] == 1
    write_tiff(tmp_path / "utm.tif", ids[None])
    with pytest.raises(ValueError, match=r'LOCAL_CS\["Local Coordinates \(m\)"\]'):
        score_map(tmp_path / "map.tif", tmp_path / "utm.tif", 3)


def test_projection_that_nobody_knows_is_refused_in_one_line(tmp_path):
    geographic = rasterio.crs.CRS.from_string("EPSG:4326").to_wkt()
    unknown = f'PROJCS["x",{geographic},PROJECTION["Foo_Bar"],UNIT["metre",1]]'.replace('"', "&quot;")
    write_as(tmp_path / "a.vrt", heights()[0], "VRT", {})
    text = (tmp_path / "a.vrt").read_text()
    start, end = text.index("<SRS"), text.index("</SRS>")
    (tmp_path / "a.vrt").write_text(text[:start] + f"<SRS>{unknown}" + text[end:])
    assert read_info(tmp_path / "a.vrt").georeference.crs.startswith('PROJCS["x"')
    write_tiff(tmp_path / "b.tif", heights()[1][None])
    for label, map_path in (("a.vrt", "b.tif"), ("b.tif", "a.vrt")):
        with pytest.raises(ValueError, match=r'no way leads to PROJCS\["(x|WGS 84 / UTM zone 31N)"\].*nobody knows'):
            score_map(tmp_path / map_path, tmp_path / label, 3)


def test_bands_of_different_types_are_read_on_another_grid_too(tmp_path):
    _, values = heights()
    for name, array in (("a", values), ("b", values / np.float32(8))):
        write_tiff(tmp_path / f"{name}.tif", array[None])
    write_as(tmp_path / "x.vrt", values, "VRT", {})
    (tmp_path / ".plain.tif").unlink()
    text = (tmp_path / "x.vrt").read_text().replace(".plain.tif", "a.tif")
    start, end = text.index("<VRTRasterBand"), text.index("</VRTDataset>")
    other = text[start:end].replace('"Byte"', '"Float32"').replace('band="1"', 'band="2"').replace("a.tif", "b.tif")
    (tmp_path / "x.vrt").write_text(text[:end] + other + text[end:])
    assert rasterio.open(tmp_path / "x.vrt").dtypes == ("uint8", "float32")
    grid = write_tiff(tmp_path / "grid.tif", np.zeros((1, 32, 48), np.uint8), pixel=0.5)
    with RasterScene({"x": tmp_path / "x.vrt"}, channels={"x": 2}, like=grid, resampling="nearest") as scene:
        found = scene.read(0, 0, 32, 48)["x"]
    expected = np.kron(np.dstack([values, values / np.float32(8)]), np.ones((2, 2, 1)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("end", ["min", "max"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "uint32", "int64", "uint64"])
def test_nodata_at_the_end_of_a_type_is_exact(tmp_path, dtype, end):
    nodata = getattr(np.iinfo(dtype), end)
    values = np.arange(1, 49).reshape(6, 8).astype(dtype)
    values[1, 2] = values[3] = nodata
    path = write_as(tmp_path / "source/x/a.vrt", values, "VRT", {})
    text = path.read_text()  # rasterio's own nodata is float64
    place = text.index("<", text.index("<VRTRasterBand") + 1)
    path.write_text(f"{text[:place]}<NoDataValue>{nodata}</NoDataValue>{text[place:]}")
    expected = values != nodata
    raster = read_raster(path)
    np.testing.assert_array_equal(raster.valid, expected)
    assert raster.values[expected][:, 0].tolist() == values[expected].tolist()
    np.testing.assert_array_equal(~read_scene(path, 1).mask[..., 0], expected)
    convert_rasters(tmp_path / "source", tmp_path / "rows", ["x"], options=ConversionOptions(label=None))
    row = decode_row(load_rows(tmp_path / "rows", "train")[0], ["x"])[0]["x"]
    (stored,) = DatasetMetadata.load(tmp_path / "rows").nodata
    np.testing.assert_array_equal(np.isin(row, stored), ~expected)
    assert row[expected].tolist() == values[expected].tolist()


def test_virtual_file_stands_for_what_is_no_file_in_a_folder(named):
    folder, values = named
    (folder / "source/red").mkdir(parents=True)
    with rasterio.open(f"NETCDF:{folder}/x.nc:Band1") as source:
        rasterio.shutil.copy(source, folder / "source/red/a.vrt", driver="VRT")
    convert_rasters(folder / "source", folder / "rows", ["red"], options=ConversionOptions(label=None))
    row = load_rows(folder / "rows", "train")[0]
    np.testing.assert_array_equal(decode_row(row, ["red"])[0]["red"], values[..., 0])


def test_local_crs_that_merely_names_the_other_is_that_one(tmp_path):
    ids, values = heights()
    name = rasterio.crs.CRS.from_string(UTM).to_wkt().split('"')[1]
    write_as(tmp_path / "source/label/a.tif", ids, "GTiff", {}, crs=LOCAL.replace("Local Coordinates (m)", name))
    fine = np.kron(values, np.ones((3, 3), np.uint8))
    write_as(tmp_path / "source/dsm/a.tif", fine, "GTiff", {}, pixel=1 / 3)
    convert_rasters(tmp_path / "source", tmp_path / "rows", ["dsm"])
    assert decode_row(load_rows(tmp_path / "rows", "train")[0], ["dsm"])[0]["dsm"].shape == fine.shape
    options = {"like": tmp_path / "source/label/a.tif", "resampling": "nearest"}
    predict_height_classes({"dsm": tmp_path / "source/dsm/a.tif"}, tmp_path / "map.tif", **options)
    assert score_map(tmp_path / "map.tif", tmp_path / "source/label/a.tif", 3)["accuracy"] == 1


@pytest.mark.parametrize("layout", ["{0}/a.tif", "a/{0}.tif"])
def test_names_that_differ_in_case_match_where_no_other_does(tmp_path, layout):
    ids, values = heights()
    for name, array in (("DSM", values), ("Label", ids)):
        write_as(tmp_path / "source" / layout.format(name), array, "GTiff", {})
    convert_rasters(tmp_path / "source", tmp_path / "rows", ["dsm"])
    np.testing.assert_array_equal(decode_row(load_rows(tmp_path / "rows", "train")[0], ["dsm"])[0]["dsm"], values)
    write_as(tmp_path / "source" / layout.format("Dsm"), values, "GTiff", {})
    with pytest.raises(ValueError, match=r"no file for dsm|differ only in their suffix or case"):
        convert_rasters(tmp_path / "source", tmp_path / "more", ["dsm"])
    write_as(tmp_path / "source" / layout.format("dsm"), values + 1, "GTiff", {})
    convert_rasters(tmp_path / "source", tmp_path / "more", ["dsm"])
    np.testing.assert_array_equal(decode_row(load_rows(tmp_path / "more", "train")[0], ["dsm"])[0]["dsm"], values + 1)


def test_link_that_leads_nowhere_is_no_missing_modality(tmp_path, capsys):
    """As DVC, git-annex and DataLad leave those that were not fetched."""
    for name in ("dsm", "label"):
        (tmp_path / "scenes" / name).mkdir(parents=True)
        write_tiff(tmp_path / "scenes" / name / "a.tif", np.ones((1, 4, 4), np.uint8))
    (tmp_path / "scenes" / "dsm" / "b.tif").symlink_to("../.git/annex/b.tif")
    arguments = ["--source", str(tmp_path / "scenes"), "--output", str(tmp_path / "rows"), "--modalities", "dsm"]
    assert main(["convert-rasters", *arguments]) == 2
    error = capsys.readouterr().err
    assert "b.tif is a link to ../.git/annex/b.tif, which is not there" in error and error.count("\n") == 1
    assert not (tmp_path / "rows").exists()


def test_geotiff_by_the_name_of_a_picture_keeps_its_place(tmp_path):
    path = Path(write_tiff(tmp_path / "a.tif", np.ones((3, 4, 4), np.uint8))).rename(tmp_path / "a.png")
    assert read_info(path).georeference is not None


def test_transparent_colour_of_sixteen_bits_holds_no_data(tmp_path):
    values = np.arange(16, dtype=np.uint16).reshape(1, 4, 4) * 4000
    path = write_tiff(tmp_path / "a.png", values, crs=None, driver="PNG", nodata=8000)
    Path(f"{path}.aux.xml").unlink(missing_ok=True)
    raster = read_raster(path)
    np.testing.assert_array_equal(raster.valid, values[0] != 8000)
    np.testing.assert_array_equal(raster.values[..., 0], values[0])


@pytest.mark.parametrize("kind", ["objects", "complex", "empty", "truncated"])
def test_arrays_that_are_no_rasters_are_named(tmp_path, kind):
    path = tmp_path / "x.npy"
    np.save(path, np.ones((4, 4), {"objects": object, "complex": complex}.get(kind, float)), allow_pickle=True)
    size = {"empty": 0, "truncated": 200}.get(kind, path.stat().st_size)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"x\.npy"):
        RasterScene({"x": path}, channels={"x": 1})
