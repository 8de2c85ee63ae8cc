"""Robustness beyond absence: how a modality is corrupted.

In normalised units (a standard deviation of the training data is 1):

| kind | level | what happens to the modality | does the mask say so? |
|---|---|---|---|
| `missing_region` | share of the image | a rectangle of random place and proportions is missing | yes |
| `noise` | standard deviation | Gaussian noise is added everywhere | no |
| `salt_and_pepper` | share of the pixels | pixels become -3 or 3 in all bands | no |
| `noise_region` | standard deviation | Gaussian noise is added to one half: top, bottom, left or right | no |
| `misregistration` | pixels | shifted up, down, left or right; the border that is uncovered is missing | the border |
| `swapped` | 1 | taken from another row of the same size | no |

These are ours; those of the robustness benchmark arXiv:2503.18445 are in `protocols`. Every draw is a function of
(seed, row id, window, kind, modality) alone: levels of one kind share their draw, and neither batch size nor order
matters. Rows swap along one fixed cycle through all rows of their size, window by window.
"""

import hashlib
from dataclasses import dataclass

import torch


SALT_AND_PEPPER_VALUE = 3.0
REGIONAL_KINDS = ("missing_region", "noise_region")
KINDS = ("missing_region", "noise", "salt_and_pepper", "noise_region", "misregistration", "swapped")


@dataclass(frozen=True)
class Corruption:
    """What is done to a modality: a kind of the table above, and how much of it in the table's unit."""

    kind: str
    level: float
    jointly: bool = False  # whether it is also done to all modalities at once, each with its own draw

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Corruption {self.kind!r} is unknown; expected one of {list(KINDS)}.")
        if self.level <= 0 or (self.kind in ("missing_region", "salt_and_pepper") and self.level > 1):
            raise ValueError(f"Corruption {self.kind!r} has level {self.level}; expected above 0, shares at most 1.")
        if self.jointly and self.kind in ("misregistration", "swapped"):
            # Shifted all at once by draws of their own, or all from one other row: neither is a corruption of fusion.
            raise ValueError(f"Corruption {self.kind!r} is not defined for all modalities at once.")

    @property
    def name(self) -> str:
        """Kind and level, the key of its figures."""
        return f"{self.kind}_{self.level:g}"


CORRUPTIONS = (
    *(Corruption("missing_region", share, jointly=True) for share in (0.25, 0.5, 0.75)),
    *(Corruption("noise", deviation, jointly=True) for deviation in (0.5, 1.0, 2.0)),
    Corruption("salt_and_pepper", 0.1, jointly=True),
    Corruption("noise_region", 2.0),
    *(Corruption("misregistration", pixels) for pixels in (2, 4, 8, 16)),
    Corruption("swapped", 1),
)


def draw(seed: int, *parts: str) -> torch.Generator:
    """Make a generator that depends on the seed and the names (row, window, kind, modality) alone."""
    digest = hashlib.sha256("\x1f".join([str(seed), *parts]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def random_rectangle(size: tuple[int, int], share: float, generator: torch.Generator) -> torch.Tensor:
    """Draw a rectangle that holds a share of the pixels, in (0, 1], up to half a row or column of them.

    Its proportions are log-uniform as far as they fit the image, its place uniform. Bool (height, width), True inside.
    """
    height, width = size
    proportion, vertical, horizontal = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    rows = min(height, max(1, round(height * share**proportion)))
    columns = min(width, max(1, round(share * height * width / rows)))
    top, left = int(vertical * (height - rows + 1)), int(horizontal * (width - columns + 1))
    region = torch.zeros(size, dtype=torch.bool)
    region[top : top + rows, left : left + columns] = True
    return region


def corrupt(
    values: torch.Tensor,
    mask: torch.Tensor,
    corruption: Corruption,
    generator: torch.Generator,
    *,
    other: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Corrupt values (C, H, W) and mask (H, W) of one modality of one window, which are not written to.

    Returns both, and for regional kinds the region, bool (H, W), else None; `other` is to be swapped with.
    """
    size = (mask.shape[0], mask.shape[1])
    kind, level = corruption.kind, corruption.level
    if kind == "missing_region":
        region = random_rectangle(size, level, generator)
        return torch.where(region, 0.0, values), mask & ~region, region
    if kind == "noise":
        return values + level * torch.randn(values.shape, generator=generator), mask, None
    if kind == "salt_and_pepper":
        position = torch.rand(size, generator=generator)
        values = torch.where(position < level, SALT_AND_PEPPER_VALUE, values)
        return torch.where(position < level / 2, -SALT_AND_PEPPER_VALUE, values), mask, None
    if kind == "noise_region":
        region = _random_half(size, generator)
        noise = level * torch.randn(values.shape, generator=generator)
        return torch.where(region, values + noise, values), mask, region
    if kind == "misregistration":
        return *_shift(values, mask, int(level), generator), None
    return *other, None


def _random_half(size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    region = torch.zeros(size, dtype=torch.bool)
    side = int(torch.randint(4, (), generator=generator))
    axis = side // 2
    middle = size[axis] // 2
    region.narrow(axis, *((0, middle) if side % 2 == 0 else (middle, size[axis] - middle))).fill_(True)
    return region


def _shift(
    values: torch.Tensor, mask: torch.Tensor, pixels: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    side = int(torch.randint(4, (), generator=generator))
    axis, forwards = side // 2 - 2, side % 2 == 0
    pixels = min(pixels, mask.shape[axis])
    border = 0 if forwards else mask.shape[axis] - pixels
    values, mask = (maps.roll(pixels if forwards else -pixels, axis) for maps in (values, mask))
    for maps in (values, mask):
        maps.narrow(axis, border, pixels).zero_()
    return values, mask
