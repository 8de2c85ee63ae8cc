"""Images of any size through a model that takes tiles: overlapping windows, blended, and what the overlap is worth."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..model.cells_sgma import PAD_MULTIPLE, pixel_logits


# Share of the side. On a model trained on crops of 128 pixels, neighbouring tiles gave other labels to 7.1 % of the
# pixels midway between their edges at an overlap of 1/8, 1.8 % at 1/4, 2.5 % at 1/2: `measure_overlaps`.
DEFAULT_OVERLAP = 0.25


def default_stride(tile_size: int, overlap: float = DEFAULT_OVERLAP) -> int:
    """Pixels between the starts of neighbouring tiles: multiples of 32 where the tile is large enough for that.

    Args:
        tile_size: Side of a tile in pixels.
        overlap: Share of the tile's side that neighbours have in common, in [0, 1).

    Raises:
        ValueError: If a number is out of range.
    """
    if tile_size < 1:
        raise ValueError(f"`tile_size` is {tile_size}; expected pixels, at least 1.")
    if not 0 <= overlap < 1:
        raise ValueError(f"`overlap` is {overlap}; expected a share of the tile's side in [0, 1), such as 0.25.")
    stride = max(1, round(tile_size * (1 - overlap)))
    # Tiles that start on multiples of the coarsest cell see the same grid of cells.
    return stride // PAD_MULTIPLE * PAD_MULTIPLE or stride


def tile_starts(length: int, tile_size: int, stride: int) -> list[int]:
    """Where tiles start along an axis; the last one is shifted back so that it ends with the axis.

    Args:
        length: Pixels along the axis.
        tile_size: Pixels of a tile; where that is more than there are, there is one tile.
        stride: Pixels between starts, 1 to `tile_size`.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> tile_starts(10, 4, 3)
        [0, 3, 6]
        >>> tile_starts(11, 4, 3)
        [0, 3, 6, 7]
    """
    if tile_size < 1 or not 1 <= stride <= tile_size:
        raise ValueError(
            f"`tile_size` is {tile_size} and `stride` {stride}; expected a stride of 1 to `tile_size` pixels."
        )
    return [*range(0, max(0, length - tile_size), stride), max(0, length - tile_size)]


def tile_weights(height: int, width: int) -> torch.Tensor:
    """Weights of a tile's pixels in the blend, falling linearly from the middle to the edge, but not to 0.

    Returns:
        float32 in (0, 1], shape (height, width).
    """
    ramps = []
    for length in (height, width):
        position = torch.arange(length, dtype=torch.float32)
        ramps.append(torch.minimum(position + 0.5, length - position - 0.5) / (length / 2))
    return torch.outer(*ramps)


class TileBlender:
    """Adds up weighted tiles of an image, row of tiles by row of tiles, and hands out what no further tile touches.

    It holds as many rows of pixels as a tile has, whatever the height of the image:
    `4 * (channels + 1) * tile height * image width` bytes.

    Args:
        channels: Maps per tile.
        tile: (height, width) of the tiles in pixels.
        width: Width of the image in pixels.
        top: First row of the image that is held.
        device: Where to add up.
    """

    def __init__(
        self,
        channels: int,
        tile: tuple[int, int],
        width: int,
        *,
        top: int = 0,
        device: torch.device | str = "cpu",
    ):
        self.top = top
        self._sums = torch.zeros(channels, tile[0], width, device=device)
        self._weights = torch.zeros(tile[0], width, device=device)
        self._tile = tile_weights(*tile).to(device)

    def add(self, maps: torch.Tensor, top: int, left: int) -> None:
        """Add a tile.

        Args:
            maps: float, (channels, height, width) of a tile.
            top: Its first row in the image. Rows above those that are held are somebody else's and left out.
            left: Its first column.
        """
        skipped = max(0, self.top - top)
        first = top + skipped - self.top
        weights, maps = self._tile[skipped:], maps[:, skipped:]
        rows, columns = slice(first, first + weights.shape[0]), slice(left, left + weights.shape[1])
        self._sums[:, rows, columns] += weights * maps
        self._weights[rows, columns] += weights

    def finish(self, bottom: int) -> torch.Tensor:
        """The blended rows from the first that is held to `bottom`, (channels, rows, width); 0 where no tile lay.

        It is a view that `advance` overwrites.
        """
        rows = slice(0, bottom - self.top)
        # In place: at the size of a whole strip of many classes, a copy would cost as much as the strip.
        return self._sums[:, rows].div_(self._weights[rows].clamp_min(torch.finfo(torch.float32).tiny))

    def advance(self, top: int) -> None:
        """Forget the rows above `top` and make room below."""
        done = top - self.top
        for held in (*self._sums, self._weights):  # one map at a time keeps the copy small
            held[: held.shape[0] - done] = held[done:].clone()
            held[held.shape[0] - done :] = 0
        self.top = top


@torch.no_grad()
def sliding_window_logits(
    model: Any,
    pixel_values: torch.Tensor,
    modality_mask: torch.Tensor | None = None,
    *,
    tile_size: int,
    stride: int | None = None,
    batch_size: int = 1,
) -> torch.Tensor:
    """Class scores of images of any size, from overlapping tiles.

    The last tile of a row or column is shifted back so that it ends with the image. An image that is smaller than a
    tile is one smaller tile: the model pads it, with missing data, to what its strides need and crops the result, and
    gives what it gives for the image alone. Where tiles overlap, their logits are averaged with weights that fall
    towards the tile's edge. Windows that no modality covers are skipped.

    Args:
        model: An SGMA model with a segmentation head, in eval mode, or anything that is called and answers alike.
        pixel_values: As for the model, float, (batch_size, sum of channels, height, width).
        modality_mask: As for the model, bool, (batch_size, num_modalities) or with (height, width) behind.
        tile_size: Side of the tiles in pixels; best what the model was trained on.
        stride: Pixels between tiles, 1 to `tile_size`. None: see `default_stride`.
        batch_size: Tiles per forward pass.

    Returns:
        float32, (batch_size, num_labels, height, width), on the device of `pixel_values`. 0 where a tile was skipped.

    Raises:
        ValueError: If a number is out of range, or no window of any image is covered.

    Example:
    ```python
    >>> from sgma_hf.prediction.sliding_window import sliding_window_logits

    >>> logits = sliding_window_logits(model, pixel_values, modality_mask, tile_size=512)
    >>> class_ids = logits.argmax(1)
    ```
    """
    stride = default_stride(tile_size) if stride is None else stride
    height, width = pixel_values.shape[-2:]
    tile = (min(tile_size, height), min(tile_size, width))
    tops, lefts = tile_starts(height, tile_size, stride), tile_starts(width, tile_size, stride)
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}; expected at least 1.")
    rows = range(pixel_values.shape[0])
    blenders: list[TileBlender] = []
    logits: torch.Tensor | None = None
    for top, bottom in zip(tops, [*tops[1:], height], strict=True):
        windows = [(row, top, left) for left in lefts for row in rows]
        for batch, tiles, masks in _tile_batches(pixel_values, modality_mask, windows, tile, batch_size):
            outputs = model(pixel_values=tiles, modality_mask=masks)
            maps = pixel_logits(outputs.logits, tile)
            if not blenders:
                blenders = [TileBlender(maps.shape[1], tile, width, top=top, device=maps.device) for _ in rows]
                logits = maps.new_zeros(len(rows), maps.shape[1], height, width)
            for (row, _, left), predicted in zip(batch, maps, strict=True):
                blenders[row].add(predicted, top, left)
        for row, blender in enumerate(blenders):
            logits[row, :, top:bottom] = blender.finish(bottom)
            if bottom < height:
                blender.advance(bottom)
    if logits is None:
        raise ValueError("`modality_mask` covers nothing in any window; there is no image to predict.")
    return logits.to(pixel_values.device)


def _tile_batches(
    pixel_values: torch.Tensor,
    modality_mask: torch.Tensor | None,
    windows: Sequence[tuple[int, int, int]],
    tile: tuple[int, int],
    batch_size: int,
) -> Iterator[tuple[list[tuple[int, int, int]], torch.Tensor, torch.Tensor | None]]:
    """Batches of covered windows (row, top, left) with their pixel values and masks."""

    def cut(maps: torch.Tensor, window: tuple[int, int, int]) -> torch.Tensor:
        row, top, left = window
        return maps[row, :, top : top + tile[0], left : left + tile[1]] if maps.ndim == 4 else maps[row]

    if modality_mask is not None:
        windows = [window for window in windows if cut(modality_mask, window).any()]
    for start in range(0, len(windows), batch_size):
        batch = list(windows[start : start + batch_size])
        masks = None if modality_mask is None else torch.stack([cut(modality_mask, window) for window in batch])
        yield batch, torch.stack([cut(pixel_values, window) for window in batch]), masks


@torch.no_grad()
def measure_overlaps(
    model: Any,
    pixel_values: torch.Tensor,
    modality_mask: torch.Tensor | None = None,
    *,
    tile_size: int,
    overlaps: Sequence[float] = (0.125, 0.25, 0.5),
) -> list[dict[str, float]]:
    """How much neighbouring tiles disagree where they overlap.

    A model whose attention spans the tile gives a pixel another score in another tile; the blend hides the step, not
    the cause. Two tiles beside each other are predicted for every overlap and compared in what they share.

    The default overlap comes from this figure: it is the smallest one beyond which the disagreement midway between
    the edges of two tiles (where both weigh the same, and the blend can do least) stopped falling much.

    Args:
        model: An SGMA model with a segmentation head, in eval mode.
        pixel_values: As for the model, at least `tile_size` high and twice as wide.
        modality_mask: As for the model.
        tile_size: Side of the tiles in pixels.
        overlaps: Shares of the tile's side.

    Returns:
        For each overlap: `overlap`; `label_disagreement`, the share of covered pixels in the overlap to which the two
        tiles give different classes; `probability_gap`, the mean over them of the largest difference of a class
        probability; and both again for the 8 columns in the middle of the overlap, as `middle_...`.

    Raises:
        ValueError: If the image is too small.
    """
    height, width = pixel_values.shape[-2:]
    if height < tile_size or width < 2 * tile_size:
        raise ValueError(
            f"The image has {height} x {width} pixels; expected at least {tile_size} x {2 * tile_size}: two tiles "
            "beside each other. Give a larger image or a smaller `tile_size`."
        )

    def predict(left: int) -> torch.Tensor:
        columns = slice(left, left + tile_size)
        mask = modality_mask
        if mask is not None and mask.ndim == 4:
            mask = mask[..., :tile_size, columns]
        outputs = model(pixel_values=pixel_values[..., :tile_size, columns], modality_mask=mask)
        scores = pixel_logits(outputs.logits, (tile_size, tile_size)).softmax(1)
        return scores.masked_fill(~outputs.coverage.unsqueeze(1), float("nan"))

    first, figures = predict(0), []
    for overlap in overlaps:
        shared = max(8, round(overlap * tile_size))
        here, there = first[..., tile_size - shared :], predict(tile_size - shared)[..., :shared]
        covered = ~here[:, 0].isnan()
        wrong = (here.argmax(1) != there.argmax(1)).float()
        gap = (here - there).abs().amax(1)
        middle = slice(shared // 2 - 4, shared // 2 + 4)
        figures.append(
            {
                "overlap": float(overlap),
                "label_disagreement": wrong[covered].mean().item(),
                "probability_gap": gap[covered].mean().item(),
                "middle_label_disagreement": wrong[..., middle][covered[..., middle]].mean().item(),
                "middle_probability_gap": gap[..., middle][covered[..., middle]].mean().item(),
            }
        )
    return figures
