"""`sgma-hf app`: a page to try a model on: scenes, modalities to switch off, gaps, files of one's own.

sgma-hf app --model DIR_OR_ID --scenes scenes/
"""

import argparse
import threading
from collections.abc import Sequence
from pathlib import Path

from sgma_hf.commands.checkpoint_arguments import check_checkpoint, choose_device, load_model
from sgma_hf.commands.scene_maps import ASSETS, parse_assets
from sgma_hf.data.command_line import Parser, check_folder_or_id, report_errors


@report_errors("sgma-hf app")
def main(argv: list[str] | None = None) -> None:
    """Serve the page until it is stopped, or write it as a Space."""
    parser = Parser(prog="sgma-hf app", description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR_OR_ID", help="checkpoint")
    scenes = parser.add_mutually_exclusive_group()
    scenes.add_argument(
        "--scenes", metavar="SOURCE", help="scenes to choose from, as `sgma-hf predict --scenes` takes"
    )
    scenes.add_argument("--dataset", metavar="DIR_OR_ID", help="rows to choose from")
    assets = f"with --scenes: {ASSETS}; the truth is `label`"
    add("--assets", nargs="+", action="extend", default=[], metavar="NAME=KEY[:BANDS]", help=assets)
    add("--window", type=int, default=512, metavar="PIXELS", help="side of what is shown at once; default: 512")
    add("--title", help="heading of the page; default: the name of the model")
    add("--host", help="address to serve at; default: this machine alone. 0.0.0.0: the whole network")
    add("--port", type=int, help="default: the first free one from 7860 on")
    add("--device", help="cpu, cuda, cuda:1, ...; CUDA where there is some")
    parser.add_switch("--allow_other_scale", help="show rasters of another unit or bit depth all the same")
    add("--space", metavar="DIR", help="write the page as a Hugging Face Space to this folder, and serve nothing")
    args = parser.parse_args(argv)
    if args.window < 32:
        raise ValueError(f"`--window` is {args.window}; expected at least 32 pixels.")
    if args.port is not None and not 0 < args.port < 2**16:
        raise ValueError(f"`--port` is {args.port}; expected 1 to 65535.")
    if args.assets and args.scenes is None:
        raise ValueError("`--assets` says what things are called in `--scenes`; give both, or neither.")
    modalities = check_checkpoint(args.model, of_arms=False)
    if args.dataset is not None:
        check_folder_or_id(args.dataset, "--dataset")
    title = args.title or f"SGMA: {Path(args.model).resolve().name}"
    if args.space is not None:
        from sgma_hf.app.space import write_space

        named = [("--scenes", args.scenes), ("--dataset", args.dataset)]
        found = next((pair for pair in named if pair[1] is not None), None)
        more = ["--title", title, "--window", str(args.window)]
        more += ["--assets", *args.assets] if args.assets else []
        more += ["--allow_other_scale"] if args.allow_other_scale else []
        for path in write_space(Path(args.space), title, args.model, more, scenes=found):
            print(path)
        return
    _serve(args, title, modalities)


def _serve(args: argparse.Namespace, title: str, modalities: Sequence[str]) -> None:
    """Serve the page until Ctrl-C."""
    try:
        from sgma_hf.app.page import Page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ImportError("The page needs gradio, which is not installed: pip install 'sgma-hf[app]'.") from error
    from transformers import AutoConfig, AutoImageProcessor

    from sgma_hf.app.sights import LABEL, Sights
    from sgma_hf.publishing.record import recorded_classes
    from sgma_hf.rasters.listings.sources import list_rows, list_scenes

    config, found = AutoConfig.from_pretrained(args.model), []
    if args.dataset is not None:
        found = list_rows(args.dataset, [*modalities, LABEL])
    elif args.scenes is not None:
        found = list_scenes(
            args.scenes, [*modalities, LABEL], assets=parse_assets(args.assets), dated=config.date_periods is not None
        )
    model = load_model(args.model, dtype="float32", device=choose_device(args.device))
    how = {"side": args.window, "allow_other_scale": args.allow_other_scale}
    classes = recorded_classes(args.model, model.config.class_names)
    sights = Sights(model, AutoImageProcessor.from_pretrained(args.model), found, classes=classes, **how)
    address = Page(sights, title).launch(host=args.host, port=args.port)
    print(f"The page is at {address}; Ctrl-C ends it", flush=True)
    threading.Event().wait()
