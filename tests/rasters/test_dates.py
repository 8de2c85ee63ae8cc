"""When a raster was taken: names, tags, STAC items and tables; never the day of processing, and never a guess."""

import json
from datetime import datetime

import numpy as np
import pytest
import rasterio
from PIL import Image

from sgma_hf.rasters.dates import DateTable, date_in_name, date_of, known_date, name_without_date


DAY = datetime(2019, 3, 2)

NAMES = {
    "S2A_MSIL2A_20190302T105021_N0211_R051_T31UFR_20190303T135231.SAFE": datetime(2019, 3, 2, 10, 50, 21),
    "T31UFR_20190302T105021_B02_10m.jp2": datetime(2019, 3, 2, 10, 50, 21),
    "L2A_T31UFR_A019285_20190302T105510.tif": datetime(2019, 3, 2, 10, 55, 10),
    "S2A_OPER_PRD_MSIL1C_PDMC_20190318T145513_R008_V20190302T102307_20190302T102307.SAFE": datetime(
        2019, 3, 2, 10, 23, 7
    ),
    "S2A_31UFR_20190302_0_L2A.tif": DAY,
    "S1A_IW_GRDH_1SDV_20190302T172325_20190302T172350_026166_02EBF3_4F3F.tiff": datetime(2019, 3, 2, 17, 23, 25),
    "s1a-iw-grd-vv-20190302t172325-20190302t172350-026166-02ebf3-001.tiff": datetime(2019, 3, 2, 17, 23, 25),
    "OPERA_L2_RTC-S1_T087-185678-IW2_20190302T161822Z_20230915T063525Z_S1A_30_v0.1_VV.tif": datetime(
        2019, 3, 2, 16, 18, 22
    ),
    "LC08_L2SP_197026_20190302_20200829_02_T1_SR_B4.TIF": DAY,
    "LC81970262019061LGN00_B4.TIF": DAY,
    "LC081970262019030201T1-SC20200102030405.tif": DAY,
    "HLS.S30.T31UFR.2019061T105021.v2.0.B04.tif": datetime(2019, 3, 2, 10, 50, 21),
    "MOD09A1.A2019061.h18v04.061.2020288062301.hdf": DAY,
    "VNP09GA.A2019061.h18v04.001.2020010203040.h5": DAY,
    "MOD13Q1.061__250m_16_days_NDVI_doy2019061_aid0001.tif": DAY,
    "SENTINEL2B_20190302-105849-460_L2A_T31UFR_C_V2-2_FRE_B2.tif": datetime(2019, 3, 2, 10, 58, 49),
    "20190302_101530_1032_3B_AnalyticMS_SR.tif": datetime(2019, 3, 2, 10, 15, 30),
    "2019-03-02T101530_RE1_3A-NAC_1234.tif": datetime(2019, 3, 2, 10, 15, 30),
    "IMG_SPOT6_P_201903021015306_ORT.TIF": datetime(2019, 3, 2, 10, 15, 30),
    "global_monthly_2019_03_mosaic_L15-0331E-1257N_1327_3160_13.tif": datetime(2019, 3, 1),
    "planet_medres_normalized_analytic_2018-12_2019-05_mosaic.tif": datetime(2018, 12, 1),
    "31UFR_20190302_S2_0_256.tif": DAY,
    "AST_L1T_00303022019105021_20190403123456_12345.hdf": DAY,
    "c_gls_NDVI300_201903021015_GLOBE_PROBAV_V1.0.1.nc": datetime(2019, 3, 2, 10, 15),
    "1311_3077_13-2019_03_02.tif": DAY,
    "m_3807511_ne_18_060_20190302_20190405.tif": DAY,
    "20190302.tif": DAY,
    "2019-03-02.tif": DAY,
    "2019_03_02.tif": DAY,
    "field_2019.03.02.tif": DAY,
    "20191345_20190302.tif": DAY,
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_the_date_of_acquisition_in_names_as_agencies_write_them(name, expected):
    assert date_in_name(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "S2A_OPER_MSI_L1C_TL_SGS__20160318T160000_A003853_T32TQM_B02.jp2",  # when it was processed
        "20190230.tif",  # no day of the calendar
        "2019366.tif",
        "HLS.S30.T31UFR.2019366T105021.v2.0.B04.tif",
        "tile_2019061.tif",  # could be any number
        "patch_2048_10.tif",
        "scene_2019.tif",
        "10192019030.tif",
        "1920190302.tif",
        "a.tif",
    ],
)
def test_a_number_that_is_no_date_is_none(name):
    assert date_in_name(name) is None and name_without_date(name) is None


def test_a_name_without_its_date_is_that_of_the_place():
    names = ["a_20190302", "20190302_a", "a_2019-03-02_b", "20190302", "T31UFR_20190302T105021"]
    assert [name_without_date(name) for name in names] == ["a", "a", "a_b", "", "T31UFR"]


def write_tiff(path, **tags):
    profile = {"driver": "GTiff", "width": 4, "height": 4, "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.ones((1, 4, 4), np.uint8))
        domains = {"ns": tags.pop("ns")} if "ns" in tags else {}
        file.update_tags(**domains, **tags)
    return path


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_tags_then_a_stac_item_beside_it_and_a_table_before_all(tmp_path):
    tagged = write_tiff(tmp_path / "a.tif", TIFFTAG_DATETIME="2019:03:02 10:50:21")
    assert date_of(tagged) == (datetime(2019, 3, 2, 10, 50, 21), "tag")
    imagery = write_tiff(tmp_path / "b.tif", ns="IMAGERY", ACQUISITIONDATETIME="2019-03-02T10:50:21+02:00")
    assert date_of(str(imagery)) == (datetime(2019, 3, 2, 8, 50, 21), "tag")
    for name, expected in (("20190302", (DAY, "folder")), ("field_20190302", None)):
        (tmp_path / name).mkdir()
        assert known_date(write_tiff(tmp_path / name / "a.tif")) == expected
    item = {"type": "Feature", "stac_version": "1.0.0", "properties": {"datetime": "2019-03-02T10:50:21Z"}}
    empty = write_tiff(tmp_path / "c.tif", TIFFTAG_DATETIME="0000:00:00 00:00:00")
    (tmp_path / "c.json").write_text(json.dumps(item))
    (tmp_path / "other.json").write_text("[1]")
    assert date_of(empty) == (datetime(2019, 3, 2, 10, 50, 21), "STAC item")
    picture = tmp_path / "d.png"
    Image.new("L", (4, 4)).save(picture)
    item |= {"properties": {"datetime": None, "start_datetime": "2020-01-01"}, "assets": {"x": {"href": "./d.png"}}}
    (tmp_path / "item.json").write_text(json.dumps(item))
    assert date_of(picture) == (datetime(2020, 1, 1), "STAC item")
    # Who gives a table knows better than a name.
    table = tmp_path / "dates.csv"
    table.write_text("file,date\nsite_a/20190302.tif,2018-01-01\n20190302,2018-02-02T12:00:00-01:00\nd,2018-03-03\n")
    table = DateTable.read(table)
    assert date_of(tmp_path / "site_a" / "20190302.tif", table) == (datetime(2018, 1, 1), "table")
    assert date_of(tmp_path / "site_b" / "20190302.tif", table) == (datetime(2018, 2, 2, 13), "table")
    assert date_of(picture, table) == (datetime(2018, 3, 3), "table")
    assert date_of(tmp_path / "x_20190402.tif", table) == (datetime(2019, 4, 2), "name")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_what_nobody_says_is_refused_with_the_ways_out(tmp_path):
    path = write_tiff(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"when .*a\.tif was taken.*--date_table dates\.csv") as error:
        date_of(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,when\na,2019-03-02\n", r"has the columns \['name', 'when'\]; expected file and date"),
        ("file,date\na,02/03/2019\n", r"line 2 is '02/03/2019', which is no date"),
        ("file,date\na,2019-03-02\nb\n", r"line 3 is '', which is no date"),
        ("file,date\na,2019-03-02\na,2019-03-03\n", "two dates for a"),
    ],
)
def test_a_table_that_does_not_say_is_refused(tmp_path, text, message):
    path = tmp_path / "dates.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        DateTable.read(path)
