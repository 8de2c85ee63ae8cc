"""Images of any size through a model that takes tiles: overlapping windows, blended."""

from typing import Any

import torch

from ..data.windows import Window, window_starts
from ..model.cells_sgma import PAD_MULTIPLE, pixel_logits


# Share of the side. On a model trained on crops of 128 pixels, neighbouring tiles gave other labels to 7.1 % of the
# pixels midway between their edges at an overlap of 1/8, 1.8 % at 1/4, 2.5 % at 1/2: `cost.overlaps`.
DEFAULT_OVERLAP = 0.25


def default_stride(tile_size: int, overlap: float = DEFAULT_OVERLAP) -> int:
    """Pixels between the starts of neighbouring tiles: multiples of 32 where the tile is large enough for that.

    `overlap` is the share of the tile's side that neighbours have in common, in [0, 1).
    """
    if tile_size < 1:
        raise ValueError(f"`tile_size` is {tile_size}; expected pixels, at least 1.")
    if not 0 <= overlap < 1:
        raise ValueError(f"`overlap` is {overlap}; expected a share of the tile's side in [0, 1), such as 0.25.")
    stride = max(1, round(tile_size * (1 - overlap)))
    # Tiles that start on multiples of the coarsest cell see the same grid of cells.
    return stride // PAD_MULTIPLE * PAD_MULTIPLE or stride


def tile_weights(height: int, width: int) -> torch.Tensor:
    """Weights of a tile's pixels in the blend, (height, width): linear from the middle to the edge, in (0, 1]."""
    ramps = []
    for length in (height, width):
        position = torch.arange(length, dtype=torch.float32)
        ramps.append(torch.minimum(position + 0.5, length - position - 0.5) / (length / 2))
    return torch.outer(*ramps)


class TileBlender:
    """Adds up weighted tiles of an image, row of tiles by row of tiles, and hands out what no further tile touches.

    It holds as many rows of pixels as a tile of (height, width) has, whatever the height of the image, from `top` on:
    `4 * (channels + 1) * tile height * image width` bytes.
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
        """Add a tile's maps, (channels, height, width), at a place in the image.

        Rows above those that are held are somebody else's and left out.
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
    tops, lefts = window_starts(height, tile_size, stride), window_starts(width, tile_size, stride)
    tile = (min(tile_size, height), min(tile_size, width))
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}; expected at least 1.")
    rows = range(pixel_values.shape[0])
    blenders: list[TileBlender] = []
    logits: torch.Tensor | None = None
    for top, bottom in zip(tops, [*tops[1:], height], strict=True):
        places = [(row, Window(top, left, *tile)) for left in lefts for row in rows]
        if modality_mask is not None:
            places = [place for place in places if _cut(modality_mask, *place).any()]
        for start in range(0, len(places), batch_size):
            batch = places[start : start + batch_size]
            tiles, masks = (
                None if maps is None else torch.stack([_cut(maps, *place) for place in batch])
                for maps in (pixel_values, modality_mask)
            )
            maps = pixel_logits(model(pixel_values=tiles, modality_mask=masks).logits, tile)
            if not blenders:
                blenders = [TileBlender(maps.shape[1], tile, width, top=top, device=maps.device) for _ in rows]
                logits = maps.new_zeros(len(rows), maps.shape[1], height, width)
            for (row, window), predicted in zip(batch, maps, strict=True):
                blenders[row].add(predicted, window.top, window.left)
        for row, blender in enumerate(blenders):
            logits[row, :, top:bottom] = blender.finish(bottom)
            if bottom < height:
                blender.advance(bottom)
    if logits is None:
        raise ValueError("`modality_mask` covers nothing in any window; there is no image to predict.")
    return logits.to(pixel_values.device)


def _cut(maps: torch.Tensor, row: int, window: Window) -> torch.Tensor:
    """A window of one image; of a mask without height and width, all of it."""
    return maps[row, :, *window.slices] if maps.ndim == 4 else maps[row]
