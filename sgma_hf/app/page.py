"""The page in gradio: what can be chosen, and what happens then; what is shown is made by `panels`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from ..data.command_line import USER_ERRORS
from ..data.windows import Window
from ..publishing.html import Html, element
from .answers import Answer, answer, explain
from .panels import panels
from .sights import LABEL, Sight, Sights, View, with_dates


_SUFFIXES = [".tif", ".tiff", ".png", ".jpg", ".jpeg", ".npy"]
_HINT = "Click a picture to ask why a pixel got its class. Draw a rectangle on what a modality shows to cut a gap."
# What the tables of dates say, read when an event is sent: one that waits would be sent with what an earlier one said.
_PICKED = """(...state) => {
  const values = (which) => [...document.querySelectorAll(`.dates ${which}`)].map((input) => Number(input.value));
  return [...state.slice(0, -1), [values("[type=checkbox]:not(:checked)"), values("[type=radio]:checked")]];
}"""
_FONTS = ["system-ui", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]  # of the machine: none is fetched

Point = tuple[int, int] | None
Changes = dict[Any, Any]  # component -> what it gets


class Page:
    """The page of some scenes and a model; `blocks` is gradio's."""

    def __init__(self, sights: Sights, title: str):
        self._sights, self._model, self._processor = sights, sights.model, sights.processor
        names, modalities = list(sights.scenes), list(sights.processor.modalities)
        with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as self.blocks:
            self._view, self._point = gr.State(View(names[0] if names else "")), gr.State(None)
            gr.HTML(element("h1", title))
            with gr.Row():
                with gr.Column(scale=1, min_width=270, elem_id="controls"):
                    self._scene = gr.Dropdown(
                        names, value=names[0] if names else None, label="Scene", visible=bool(names)
                    )
                    self._on = gr.CheckboxGroup(modalities, value=modalities, label="Modalities")
                    self._left = gr.Slider(0, 1, step=1, label="Columns from the left", visible=False)
                    self._top = gr.Slider(0, 1, step=1, label="Rows from the top", visible=False)
                    self._whole = gr.Button("Close the gaps", visible=False)
                    self._words = gr.HTML(_paragraphs([_HINT]), elem_id="words")
                    with gr.Accordion("Files of your own", open=not names):
                        kinds = {name: name for name in modalities} | {LABEL: "truth, class ids"}
                        files = [gr.File(label=text, file_types=_SUFFIXES, height=140) for text in kinds.values()]
                        look = gr.Button("Look at them", variant="primary")
                with gr.Column(scale=4, min_width=320):
                    self._status = gr.HTML(elem_id="status", visible=False)
                    self._pictures = gr.HTML(elem_id="pictures", js_on_load=_beside("panels.js"))
            self._connect(files, list(kinds), look)

    def _connect(self, files: Sequence[gr.File], kinds: Sequence[str], look: gr.Button) -> None:
        """Say what happens on a click."""
        state = [self._view, self._on, self._point]
        places = [self._left, self._top, self._whole]
        shown = [self._view, self._point, self._scene, *places, self._words, self._status, self._pictures]

        def choose(view: View, on: list[str], point: Point, scene: str) -> Iterator[Changes]:
            yield from self._show(View(scene), on, None)

        def move(view: View, on: list[str], point: Point, left: int, top: int) -> Iterator[Changes]:
            yield from self._show(replace(view, left=left, top=top), on, None)

        def close(view: View, on: list[str], point: Point) -> Iterator[Changes]:
            yield from self._show(replace(view, gaps=()), on, point)

        def cut(view: View, on: list[str], point: Point, event: gr.EventData) -> Iterator[Changes]:
            yield from self._show(with_gap(view, self._sights.look(view), event.modality, event.corners), on, point)

        def pick(view: View, on: list[str], point: Point, picked: list[list[int]]) -> Iterator[Changes]:
            yield from self._show(with_dates(view, self._sights.look(view), *picked), on, point)

        def ask(view: View, on: list[str], point: Point, event: gr.EventData) -> Changes:
            point, sight = (int(event.point[0]), int(event.point[1])), self._sights.look(view)
            found = answer(self._model, self._processor, sight, on, with_agreement=False)
            return {self._point: point, self._words: self._explain(sight, on, point, found)}

        def hand_in(view: View, on: list[str], point: Point, *given: str | None) -> Iterator[Changes]:
            own = View(files=tuple((kind, file) for kind, file in zip(kinds, given, strict=True) if file))
            try:
                if not own.files:
                    raise ValueError("There is no file yet. Give one for each modality that you have.")
                self._sights.look(own)
            except USER_ERRORS as error:
                yield {self._status: _sentence(error, own)}
                return
            for changes in self._show(own, on, None):
                yield changes | {self._scene: None}

        how = {"outputs": shown, "show_progress": "minimal", "api_visibility": "private"}
        last = how | {"trigger_mode": "always_last"}
        self.blocks.load(self._show, state, **how)
        self._on.change(self._show, state, **last)
        self._scene.input(choose, [*state, self._scene], **last)
        gr.on([self._left.release, self._top.release], move, [*state, self._left, self._top], **last)
        self._whole.click(close, state, **how)
        self._pictures.input(cut, state, **how)
        self._pictures.select(pick, [*state, gr.JSON(visible=False)], js=_PICKED, **last)
        self._pictures.click(ask, state, **how)
        look.click(hand_in, [*state, *files], **how)

    def _show(self, view: View, on: list[str], point: Point) -> Iterator[Changes]:
        """Show a view: first all but the agreement, which takes longest."""
        changes: Changes = {self._view: view, self._point: point, self._whole: gr.update(visible=bool(view.gaps))}
        try:
            if not view.scene and not view.files:
                raise ValueError("There are no scenes. Give files of your own to look at.")
            sight = self._sights.look(view)
            found = answer(self._model, self._processor, sight, on, with_agreement=False)
            changes |= self._sliders(sight) | {self._words: self._explain(sight, on, point, found)}
            changes |= {self._status: _sentence(sight.note, view)}
            yield changes | {self._pictures: panels(self._model.config, sight, found, on, point)}
            found = answer(self._model, self._processor, sight, on, with_agreement=True)
            yield {self._pictures: panels(self._model.config, sight, found, on, point)}
        except USER_ERRORS as error:
            words = {self._words: _paragraphs([_HINT]), self._status: _sentence(error, view)}
            yield changes | words | {self._pictures: ""}

    def _sliders(self, sight: Sight) -> Changes:
        """What moves the part that is shown, where that is not all."""
        changes = {}
        for axis, slider in enumerate((self._top, self._left)):
            room = sight.scene_size[axis] - sight.window[2 + axis]
            changes[slider] = gr.update(maximum=max(1, room), value=sight.window[axis], visible=room > 0)
        return changes

    def _explain(self, sight: Sight, on: list[str], point: Point, found: Answer) -> Html:
        if point is None:
            return _paragraphs([_HINT])
        try:
            return _paragraphs(explain(self._model, sight, on, found, point))
        except ValueError as error:
            return _paragraphs([str(error)])

    def launch(self, *, host: str | None = None, port: int | None = None) -> str:
        """Serve it in threads of its own, and return its address; OSError if the port is in use."""
        theme = gr.themes.Default(font=_FONTS, font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"])
        how = {"share": False, "quiet": True, "ssr_mode": False, "prevent_thread_lock": True, "footer_links": []}
        how |= {"theme": theme, "css": _beside("panels.css"), "max_file_size": "1gb", "enable_monitoring": False}
        try:
            _, address, _ = self.blocks.launch(server_name=host, server_port=port, **how)
        except OSError as error:
            if port is None:
                raise
            raise OSError(
                f"`--port {port}` is in use or may not be used. Name another one, or leave it out."
            ) from error
        return address


def with_gap(view: View, sight: Sight, modality: str, corners: Sequence[int]) -> View:
    """A view with one gap more, between two corners (x, y, x, y) in pixels of the sight, both of them in it."""
    (left, right), (top, bottom) = sorted((corners[0], corners[2])), sorted((corners[1], corners[3]))
    gap = Window(top, left, bottom - top + 1, right - left + 1).moved(sight.window.top, sight.window.left)
    return replace(view, gaps=(*view.gaps, (modality, gap)))


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _paragraphs(lines: Sequence[str]) -> Html:
    return element("div", *(element("p", line) for line in lines), class_="words")


def _sentence(what: object, view: View) -> Changes:
    """What went wrong, without the folders of what was handed in; it is hidden if that is nothing."""
    text = str(what)
    for _, file in view.files:
        text = text.replace(f"{Path(file).parent}/", "")
    return gr.update(value=element("p", text, class_="sentence"), visible=bool(text))
