"""The page in a browser: its pictures are the maps of `predict`, and what is wrong is a sentence."""

import base64
import contextlib
import io
import shutil
import socket

import numpy as np
import pytest
from app_scenes import (
    COLORS,
    DAYS,
    NAMES,
    app_model,
    app_processor,
    dated_app_model,
    predicted,
    predicted_from,
    write_app_scenes,
    write_dated_scene,
)
from PIL import Image

from sgma_hf.app.sights import LABEL, Sights
from sgma_hf.rasters.listings.sources import list_scenes
from sgma_hf.visualization.palette import colorize


pytestmark = pytest.mark.long

pytest.importorskip("rasterio")
pytest.importorskip("gradio")
CHROMIUM = shutil.which("chromium")
WAIT = 60_000  # milliseconds


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_app_scenes(folder)
    return folder / "a"


@pytest.fixture(scope="module")
def page(scene):
    from sgma_hf.app.page import Page

    scenes = list_scenes(scene.parent, [*NAMES, LABEL])
    made = Page(Sights(app_model(), app_processor(), scenes, side=72, allow_other_scale=True), "SGMA: tiny")
    yield made
    made.blocks.close(verbose=False)


@pytest.fixture(scope="module")
def address(page):
    return page.launch()


@pytest.fixture
def tab(address):
    with opened(address, "agreement sar") as tab:
        yield tab


@contextlib.contextmanager
def opened(address, last):
    """The page as it is when it has shown all that it shows at first, up to the picture `last`."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1400, "height": 1800})
        tab.set_default_timeout(WAIT)
        tab.asked = []
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.goto(address)
        tab.wait_for_selector(f"img[alt='{last}']")
        yield tab
        browser.close()


def picture(tab, alt):
    """A picture of the page, RGBA (height, width, 4)."""
    source = tab.get_attribute(f"img[alt='{alt}']", "src")
    return np.array(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGBA"))


def assert_shows(tab, ids):
    shown, known = picture(tab, "map"), ids != 255
    same = (shown[known, :3] == colorize(ids, COLORS)[known]).all(-1)
    assert same.mean() > 0.999  # ties aside
    np.testing.assert_array_equal(shown[..., 3] > 0, known)


def cut_scene(scene, folder):
    """The part of the scene that is shown, as files of their own, which `predict` takes."""
    rasterio = pytest.importorskip("rasterio")
    folder.mkdir()
    for name in NAMES:
        with rasterio.open(scene / f"{name}.tif") as file:
            window = rasterio.windows.Window(0, 0, 72, 72)
            how = {"width": 72, "height": 72, "transform": file.window_transform(window)}
            with rasterio.open(folder / f"{name}.tif", "w", **(file.profile | how)) as part:
                part.write(file.read(window=window))
    return folder


def test_a_switch_a_question_a_gap_and_no_stranger(tab, page, scene, tmp_path, address):
    model, part = page._sights.model, cut_scene(scene, tmp_path / "part")
    every = predicted(model, app_processor(), part, NAMES)["labels"][0]
    assert_shows(tab, every)
    tab.get_by_label("dsm", exact=True).first.uncheck()
    tab.get_by_text("switched off").wait_for()
    two = predicted(model, app_processor(), part, ["rgb", "sar"])["labels"][0]
    assert (two != every).mean() > 0.01
    assert_shows(tab, two)
    tab.wait_for_selector("img[alt='agreement sar']")

    box = tab.locator("img[alt='map']").bounding_box()
    at = {"x": box["width"] * 30.5 / 72, "y": box["height"] * 20.5 / 72}
    tab.click("img[alt='map']", position=at)
    tab.get_by_text("Pixel x 30, y 20 is").wait_for()
    words = tab.inner_text("#words")
    assert "Without rgb it would" in words and "dsm" not in words and "The truth is LABEL_" in words

    box = tab.locator("img[alt='rgb']").bounding_box()
    x, y = (lambda column: box["x"] + box["width"] * column / 72), (lambda row: box["y"] + box["height"] * row / 72)
    tab.mouse.move(x(8.5), y(16.5))
    tab.mouse.down()
    tab.mouse.move(x(20), y(30), steps=4)
    tab.mouse.move(x(31.5), y(47.5), steps=4)
    tab.mouse.up()
    tab.get_by_role("button", name="Close the gaps").wait_for()
    hidden = np.zeros((72, 72), bool)
    hidden[16:48, 8:32] = True
    np.testing.assert_array_equal(picture(tab, "rgb")[..., 3] == 0, hidden)
    np.testing.assert_array_equal(
        picture(tab, "reliance rgb")[20:44, 12:28, :3], np.array([68, 1, 84]) + np.zeros((24, 16, 3))
    )
    tab.get_by_role("button", name="Close the gaps").click()
    tab.get_by_role("button", name="Close the gaps").wait_for(state="hidden")
    assert_shows(tab, two)
    assert [url for url in tab.asked if not url.startswith((address, "data:", "blob:"))] == []


def test_dates_are_switched_off_and_shown(tmp_path):
    from sgma_hf.app.page import Page

    model, processor = dated_app_model(), app_processor()
    write_dated_scene(tmp_path / "scenes")
    scenes = list_scenes(tmp_path / "scenes", [*NAMES, LABEL], dated=True)
    made = Page(Sights(model, processor, scenes, allow_other_scale=True), "SGMA: dates")
    with contextlib.closing(made.blocks), opened(made.launch(), "agreement dsm") as tab:
        every, shown = picture(tab, "map"), picture(tab, "rgb")
        tab.get_by_label("rgb of 2019-05-11 counts").uncheck()
        tab.get_by_label("rgb of 2019-03-02 counts").uncheck()
        tab.wait_for_selector("input[aria-label='rgb of 2019-07-02 counts'][disabled]")
        tab.get_by_label("2019-03-02", exact=True).check()
        tab.get_by_text("3 dates; this is 2019-03-02").wait_for()
        assert (picture(tab, "rgb") != shown).any() and (picture(tab, "map") != every).any()
        assert_shows(tab, predicted_from(model, processor, tmp_path / "scenes" / "a", DAYS[2:])[0])


def test_other_parts_and_other_scenes(tab):
    assert (picture(tab, "dsm")[..., 3] == 0).sum() == 10 * 72  # that many rows of the scene have no heights
    shown = tab.get_attribute("img[alt='dsm']", "src")
    number = tab.get_by_label("number input for Rows from the top")
    number.fill("5")
    number.press("Tab")
    tab.wait_for_function("shown => document.querySelector(`img[alt='dsm']`).src !== shown", arg=shown)
    assert (picture(tab, "dsm")[..., 3] == 0).sum() == 5 * 72
    tab.get_by_label("Scene").click()
    tab.get_by_role("option", name="b").click()
    tab.get_by_text("missing here").wait_for()
    assert tab.locator("img[alt='truth']").count() == 0


def test_files_of_ones_own_and_broken_ones(tab, scene, tmp_path):
    tab.get_by_role("button", name="Files of your own").click()
    notes, broken, whole = (tmp_path / name for name in ("notes.tif", "broken.tif", "whole.tif"))
    notes.write_text("no picture")
    broken.write_bytes((scene / "rgb.tif").read_bytes()[:300])
    shutil.copy(scene / "rgb.tif", whole)
    for path, sentence in ((notes, "notes.tif is no TIFF, PNG, JPEG or .npy file."), (broken, "broken.tif")):
        hand_in(tab, path)
        tab.locator("#status .sentence", has_text=sentence).wait_for()
        assert str(path.parent.parent) not in tab.inner_text("#status")
        assert tab.locator("img[alt='truth']").count() == 1  # what was looked at before
    hand_in(tab, whole)
    tab.locator("img[alt='truth']").wait_for(state="detached")
    assert tab.get_by_text("missing here").count() == 2
    assert tab.locator("#status .sentence").count() == 0


def hand_in(tab, path):
    """Give a file for the first modality in place of the one that is there."""
    remove = tab.get_by_label("Clear")
    if remove.count():
        remove.first.click()
    tab.locator("input[type=file]").first.set_input_files(path)
    tab.get_by_text(path.suffix).last.wait_for()  # its name is shown when it is here
    tab.get_by_role("button", name="Look at them").click()


def test_a_port_in_use_is_one_line():
    from sgma_hf.app.page import Page

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"`--port {port}` is in use"):
            Page(Sights(app_model(), app_processor()), "SGMA: tiny").launch(port=port)
