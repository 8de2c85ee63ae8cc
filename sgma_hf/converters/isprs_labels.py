"""The colours of the ISPRS 2D semantic labelling benchmark (Potsdam and Vaihingen), and their decoder."""

import numpy as np

from ..model.configuration_sgma import IGNORE_INDEX
from .benchmarks.dataset import Choice


CLASS_NAMES = ("impervious surfaces", "building", "low vegetation", "tree", "car", "clutter")
# The benchmark's page; open-mmlab/mmsegmentation, mmseg/datasets/potsdam.py, has the same names and colours.
PALETTE = ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0))
CLUTTER = 5
HOMEPAGE = "https://www.isprs.org/education/benchmarks/UrbanSemLab/default.aspx"
BENCHMARK_CITATION = """@article{rottensteiner2012isprs,
  author  = {Rottensteiner, F. and Sohn, G. and Jung, J. and Gerke, M. and Baillard, C. and Benitez, S. and
             Breitkopf, U.},
  title   = {The {ISPRS} Benchmark on Urban Object Classification and {3D} Building Reconstruction},
  journal = {ISPRS Annals of the Photogrammetry, Remote Sensing and Spatial Information Sciences},
  volume  = {I-3},
  pages   = {293--298},
  year    = {2012},
  doi     = {10.5194/isprsannals-I-3-293-2012}
}"""
LABEL_CHOICES = {
    "labels": Choice("full", "full labels, or eroded ones whose class boundaries are ignored", ("full", "eroded")),
    "classes": Choice(5, "5 ignores clutter, as the benchmark's headline figures do; 6 keeps it", (5, 6)),
}

_THRESHOLD = 127
# No channel of any of the 71 labels is nearer to the threshold (KushwahaSujal/SATQuery-AI, tests/unit/
# test_isprs_dataset.py): what is nearer is no lossy copy of a class colour.
_MARGIN = 40
_MAGENTA, _BLACK = 5, 0
# Class by corner of the colour cube, 4 * red + 2 * green + blue.
_CORNERS = np.array([IGNORE_INDEX, 1, 3, 2, 5, IGNORE_INDEX, 4, 0], dtype=np.uint8)
_MAX_LISTED = 5
_MAX_SEAM_SHARE = 0.01


def decode_isprs_label(colors: np.ndarray, *, num_classes: int, is_eroded: bool) -> np.ndarray:
    """Turn the colours of a label into class ids.

    Each channel is compared with 127, so that labels that were compressed with loss, and the cars of a Potsdam label
    whose red is 252, are read as meant; exact comparison loses them (torchgeo/torchgeo issue 1727).

    Args:
        colors: uint8 (height, width, 3), or 4 channels of which the last does not count.
        num_classes: 6, or 5 to ignore clutter.
        is_eroded: Whether black, the boundary between classes, may occur; it becomes 255.

    Returns:
        uint8 (height, width): 0 impervious surfaces, 1 building, 2 low vegetation, 3 tree, 4 car, 5 clutter, 255
        ignored.

    Raises:
        ValueError: If colours occur that are near none of the classes; they are listed with their counts.
    """
    if colors.dtype != np.uint8 or colors.ndim != 3 or colors.shape[2] not in (3, 4):
        raise ValueError(
            f"holds {colors.shape[2] if colors.ndim == 3 else 1} band(s) of {colors.dtype}; expected three of uint8"
        )
    red, green, blue = (colors[..., index] > _THRESHOLD for index in range(3))
    corners = 4 * red.astype(np.uint8) + 2 * green.astype(np.uint8) + blue.astype(np.uint8)
    # uint8 wraps round, so this is one comparison for "between threshold - margin and threshold + margin".
    low = np.uint8(_THRESHOLD - _MARGIN + 1)
    unclear = ((colors[..., :3] - low) < np.uint8(2 * _MARGIN)).any(axis=-1)
    unknown = corners == _MAGENTA
    label = _CORNERS[corners]
    if is_eroded and unclear.mean() <= _MAX_SEAM_SHARE:
        label[unclear] = IGNORE_INDEX  # a lossy copy blends a class with the black of the seam beside it
    else:
        unknown |= unclear
    if not is_eroded:
        unknown |= corners == _BLACK
    if unknown.any():
        raise ValueError(_describe_unknown(colors[..., :3][unknown], is_eroded=is_eroded))
    if num_classes == CLUTTER:
        label[label == CLUTTER] = IGNORE_INDEX
    return label


def _describe_unknown(colors: np.ndarray, *, is_eroded: bool) -> str:
    found, counts = np.unique(colors, axis=0, return_counts=True)
    order = np.argsort(-counts)[:_MAX_LISTED]
    listed = ", ".join(f"({', '.join(map(str, found[index].tolist()))}) in {counts[index]} pixels" for index in order)
    more = f" and {len(found) - len(order)} more" if len(found) > len(order) else ""
    black = "" if is_eroded else "; black occurs in the eroded labels only (--labels eroded)"
    return (
        f"holds colours that are no class: {listed}{more}. The classes are {[list(color) for color in PALETTE]}{black}"
    )
