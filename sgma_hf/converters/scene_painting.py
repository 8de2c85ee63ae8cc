"""Paints procedural scenes: a suburb seen by a camera, a height sensor and a near-infrared band.

Streets, lots, houses and cars are laid out in street coordinates (u across, v along the main streets), a rotated and
gently bent frame, so that houses face their streets. Heights cast shadows; what each sensor can tell apart is decided
by a few reflectances per scene.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image


IMPERVIOUS, BUILDING, LOW_VEGETATION, TREE, CAR = range(5)

PIXEL_SIZE = 0.35  # metres
_ROOF_COLOURS = ((0.55, 0.27, 0.19), (0.47, 0.22, 0.17), (0.40, 0.31, 0.26), (0.62, 0.45, 0.36))
_CAR_COLOURS = (
    (0.92, 0.92, 0.92), (0.07, 0.07, 0.09), (0.60, 0.07, 0.07),
    (0.10, 0.17, 0.50), (0.70, 0.71, 0.74), (0.80, 0.66, 0.10),
)  # fmt: skip


@dataclass
class PaintedScene:
    """One scene, co-registered, `PIXEL_SIZE` metres per pixel."""

    rgb: np.ndarray  # uint8 (H, W, 3), 1..255
    dsm: np.ndarray  # float32 (H, W), absolute height of the surface in metres
    nir: np.ndarray  # uint8 (H, W), 1..255
    label: np.ndarray  # uint8 (H, W), class ids 0..4


@dataclass
class _Suburb:
    """A scene in the making: the street coordinates of every pixel, where the streets run, and the layers to paint."""

    u: np.ndarray  # (H, W) metres
    v: np.ndarray  # (H, W) metres
    across: np.ndarray  # (2,) unit vector of u in x, y
    main: np.ndarray  # centre lines of the streets along v, ascending u
    side: list[np.ndarray]  # per gap between main streets, centre lines v of the streets across it
    width: float  # of a street
    asphalt: np.ndarray  # (3,) reflectance
    colour: np.ndarray  # (H, W, 3) reflectance
    label: np.ndarray  # (H, W)
    height: np.ndarray  # (H, W) metres above ground

    @property
    def size(self) -> int:
        return len(self.label)

    def window(self, u: float, v: float, radius: float) -> tuple[slice, slice] | None:
        """Pixels that a thing within `radius` metres of a place can touch (the frame's bend included)."""
        middle = self.size * PIXEL_SIZE / 2  # where u = v = 0
        row = round((middle + u * self.across[1] + v * self.across[0]) / PIXEL_SIZE)
        column = round((middle + u * self.across[0] - v * self.across[1]) / PIXEL_SIZE)
        reach = int((radius + 9) / PIXEL_SIZE)
        rows, columns = (slice(max(0, at - reach), min(self.size, at + reach)) for at in (row, column))
        return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None


def smooth_noise(rng: np.random.Generator, size: int, cell: float) -> np.ndarray:
    """Noise of about unit spread that varies over `cell` pixels, float32 (size, size)."""
    count = max(2, round(size / cell) + 2)
    coarse = Image.fromarray(rng.normal(size=(count, count)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def paint_scene(rng: np.random.Generator, size: int) -> PaintedScene:
    """Paint one square scene of `size` pixels.

    What tells the classes apart: grey roofs have the colour of the street but not its height; lawn (parched in some
    scenes) has the height of the street but not its near infrared; trees have the height of houses and the near
    infrared of lawn; cars are in the colour image only, for the other two sensors flew on other days. Ground height
    and slope, sun, haze and the greenness of lawns vary from scene to scene.
    """
    suburb = _lay_out(rng, size)
    _paint_streets(rng, suburb)
    for place in _house_places(rng, suburb):
        _paint_house(rng, suburb, *place)
    _paint_trees(rng, suburb)
    near_infrared = _near_infrared(rng, suburb)
    _paint_cars(rng, suburb)
    return _sense(rng, suburb, near_infrared)


def _lay_out(rng: np.random.Generator, size: int) -> _Suburb:
    """Lawn and meadow, and where the streets will be."""
    extent = size * PIXEL_SIZE
    angle = rng.uniform(0, np.pi)
    across = np.array([np.cos(angle), np.sin(angle)])
    dy, dx = np.mgrid[0:size, 0:size].astype(np.float32) * PIXEL_SIZE - np.float64(extent / 2)
    u = dx * across[0] + dy * across[1] + 2.5 * smooth_noise(rng, size, 60 / PIXEL_SIZE)
    v = -dx * across[1] + dy * across[0] + 2.5 * smooth_noise(rng, size, 60 / PIXEL_SIZE)
    reach = extent * 0.75 + 20
    main = -reach + np.cumsum(rng.uniform(38, 52, size=int(2 * reach / 38) + 2))
    side = []
    for _ in range(len(main) - 1):
        lines = -reach + np.cumsum(rng.uniform(55, 95, size=int(2 * reach / 55) + 2))
        side.append(lines[rng.random(len(lines)) < 0.8])
    width = rng.uniform(5.5, 7.5)
    asphalt = rng.uniform(0.30, 0.42) * np.array([1.0, rng.uniform(0.98, 1.02), rng.uniform(0.97, 1.06)])
    label = np.full((size, size), LOW_VEGETATION, dtype=np.uint8)
    height = np.zeros((size, size), dtype=np.float32)
    return _Suburb(u, v, across, main, side, width, asphalt, _ground(rng, size), label, height)


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """Reflectance of lawn and meadow; parched lawn is nearly as grey as a street."""
    parched = rng.uniform(0.0, 0.75)
    green, dry = np.array([0.23, 0.33, 0.15]), np.array([0.40, 0.37, 0.31])
    patches = parched + 0.25 * smooth_noise(rng, size, 25) + 0.08 * smooth_noise(rng, size, 5)
    patches = np.clip(patches, 0, 1)[..., None]
    return ((1 - patches) * green + patches * dry) * (1 + 0.06 * smooth_noise(rng, size, 3))[..., None]


def _paint_streets(rng: np.random.Generator, suburb: _Suburb) -> None:
    """Carriageways with worn lanes and a centre line, and pavements beside them."""
    u, v, colour = suburb.u, suburb.v, suburb.colour
    to_main = np.abs(u[..., None] - suburb.main).min(axis=-1)
    distance = to_main.copy()
    gap = np.searchsorted(suburb.main, u) - 1  # which block, counted across the main streets
    for index, lines in enumerate(suburb.side):
        if len(lines):
            inside = gap == index
            distance[inside] = np.minimum(distance[inside], np.abs(v[inside][:, None] - lines).min(axis=-1))
    half = suburb.width / 2
    pavement = (distance < half + 1.8) & (distance >= half)
    road = distance < half
    texture = 1 + 0.05 * smooth_noise(rng, suburb.size, 20) + 0.02 * smooth_noise(rng, suburb.size, 2)
    colour[pavement] = (suburb.asphalt * 1.28 * texture[..., None])[pavement]
    colour[road] = (suburb.asphalt * texture[..., None])[road]
    colour[(to_main < 0.2) & (v % 6 < 3) & road] = 0.72
    suburb.label[pavement | road] = IMPERVIOUS


def _house_places(rng: np.random.Generator, suburb: _Suburb) -> Iterator[tuple[float, float, float, float]]:
    """Centres (u, v) of houses in rows along the main streets, the side they face (+-1) and the way to the street."""
    for index, line in enumerate(suburb.main):
        for side in (-1.0, 1.0):
            block = index if side > 0 else index - 1
            crossings = suburb.side[block] if 0 <= block < len(suburb.side) else np.array([])
            v = suburb.main[0] + rng.uniform(0, 15)
            while v < suburb.main[-1]:
                setback = suburb.width / 2 + 1.8 + rng.uniform(3.5, 6.0)
                near_crossing = len(crossings) and np.abs(crossings - v).min() < suburb.width / 2 + 10
                if not near_crossing and rng.random() < 0.85:
                    yield line + side * setback, v, side, setback
                v += rng.uniform(16, 24)


def _paint_house(
    rng: np.random.Generator, suburb: _Suburb, u_front: float, v_centre: float, side: float, setback: float
) -> None:
    """A house with a flat or gabled roof, an optional wing, and a drive to the street."""
    depth, breadth = rng.uniform(8, 12), rng.uniform(9, 14)
    eaves, pitch = rng.uniform(3.0, 7.0), rng.choice([0.0, rng.uniform(0.4, 0.8)])
    wing = rng.random() < 0.35
    # Three roofs in five are of the street's own grey: colour alone cannot tell them from it.
    is_grey = rng.random() < 0.6
    roof = suburb.asphalt * rng.uniform(0.94, 1.06) if is_grey else np.array(_ROOF_COLOURS[rng.integers(4)])
    shade, drive_side = rng.uniform(0.95, 1.05), rng.choice([-1.0, 1.0])
    window = suburb.window(u_front + side * depth / 2, v_centre, depth + breadth)
    if window is None:
        return
    label, colour = suburb.label[window], suburb.colour[window]
    u = (suburb.u[window] - u_front) * side  # 0 at the front wall, growing away from the street
    v = suburb.v[window] - v_centre
    drive = (np.abs(v - drive_side * (breadth / 2 - 1.6)) < 1.5) & (u < 1) & (u > -setback)
    drive &= label == LOW_VEGETATION
    colour[drive] = suburb.asphalt * 1.15
    label[drive] = IMPERVIOUS
    body = (u > 0) & (u < depth) & (np.abs(v) < breadth / 2)
    ridge = depth / 2 - np.abs(u - depth / 2)  # rises from both long walls
    if wing:
        annex = (u >= depth) & (u < depth + 4.5) & (np.abs(v + drive_side * breadth / 4) < breadth / 4)
        body |= annex
        ridge = np.where(annex, breadth / 4 - np.abs(v + drive_side * breadth / 4), ridge)
    body &= label != BUILDING
    label[body] = BUILDING
    suburb.height[window][body] = (eaves + pitch * ridge)[body]
    rows = 1 + 0.03 * np.sign(np.sin(u * 2 * np.pi / 0.9)) * (pitch > 0)  # courses of tiles
    colour[body] = (roof * shade * rows[..., None])[body]


def _paint_trees(rng: np.random.Generator, suburb: _Suburb) -> None:
    """Crowns along pavements, in gardens and in groves; domes with a rough surface."""
    size = suburb.size
    groves = smooth_noise(rng, size, 60) > 0.9
    rough = smooth_noise(rng, size, 3)
    leaf = np.array([0.16, 0.25, 0.11]) * rng.uniform(0.85, 1.15)
    y, x = np.mgrid[0:size, 0:size]
    for _ in range(int(size * size * PIXEL_SIZE**2 / 55)):
        row, column = rng.integers(0, size, size=2)
        radius, top, shade = rng.uniform(1.4, 4.2), rng.uniform(4, 14), rng.uniform(0.75, 1.2)
        tint = rng.normal(0, 0.012, size=3)
        if suburb.label[row, column] != LOW_VEGETATION or not (groves[row, column] or rng.random() < 0.3):
            continue
        reach = int(radius * 1.3 / PIXEL_SIZE) + 1
        window = (slice(max(0, row - reach), row + reach + 1), slice(max(0, column - reach), column + reach + 1))
        distance = np.hypot(y[window] - row, x[window] - column) * PIXEL_SIZE * (1 + 0.14 * rough[window])
        dome = top * (0.45 + 0.55 * np.sqrt(np.clip(1 - (distance / radius) ** 2, 0, 1)))
        crown = (distance < radius) & (dome > suburb.height[window])
        suburb.height[window][crown] = (dome + 0.35 * rough[window])[crown]
        bright = shade * (0.72 + 0.4 * (1 - distance / radius)) * (1 + 0.16 * rough[window])
        suburb.colour[window][crown] = ((leaf + tint) * bright[..., None])[crown]
        suburb.label[window][crown] = TREE


def _paint_cars(rng: np.random.Generator, suburb: _Suburb) -> None:
    """Cars parked and driving along the main streets, in the colour image and the label."""
    lanes = ((suburb.width / 2 - 1.0, 13.0), (suburb.width / 4 - 0.3, 45.0))  # way from the middle, mean gap
    for line, side, (offset, spacing) in itertools.product(suburb.main, (-1.0, 1.0), lanes):
        v_centre = suburb.main[0] + rng.uniform(0, spacing)
        while v_centre < suburb.main[-1]:
            length, breadth = rng.uniform(4.0, 4.9), rng.uniform(1.75, 1.95)
            paint = _CAR_COLOURS[rng.integers(len(_CAR_COLOURS))]
            window = suburb.window(line + side * offset, v_centre, length)
            if window is not None:
                u, v = suburb.u[window] - (line + side * offset), suburb.v[window] - v_centre
                body = (np.abs(u) < breadth / 2) & (np.abs(v) < length / 2)
                body &= suburb.label[window] == IMPERVIOUS  # crowns hide what stands below them
                glass = body & (np.abs(u) < breadth / 2 - 0.25) & ((np.abs(v - 0.75) < 0.4) | (np.abs(v + 1.35) < 0.3))
                suburb.colour[window][body] = paint
                suburb.colour[window][glass] = (0.10, 0.12, 0.15)
                suburb.label[window][body] = CAR
            v_centre += 5.6 + rng.exponential(spacing)


def _near_infrared(rng: np.random.Generator, suburb: _Suburb) -> np.ndarray:
    """Reflectance in the near infrared: high for all plants, low and alike for streets and roofs."""
    plants = rng.uniform(0.46, 0.60)
    brightness = suburb.colour.mean(axis=-1)
    dry = np.clip((brightness - 0.2) * 1.1, 0, 0.16)  # parched lawn is a little darker here
    leaves = plants * np.clip(0.66 + 1.9 * brightness, 0.65, 1.15)
    values = np.where(suburb.label == TREE, leaves, plants * 1.04 - dry)
    stone = np.isin(suburb.label, (IMPERVIOUS, BUILDING))
    return np.where(stone, 0.12 + 0.33 * brightness, values) * (1 + 0.06 * smooth_noise(rng, suburb.size, 8))


def _shadows(height: np.ndarray, direction: np.ndarray, elevation: float) -> np.ndarray:
    """True where something towards the sun stands above the ray; `direction` (x, y) points to the sun."""
    shaded = np.zeros(height.shape, dtype=bool)
    steps = int(height.max() / np.tan(elevation) / PIXEL_SIZE)
    size = height.shape[0]
    for step in range(1, min(steps, size - 1) + 1):
        dx, dy = np.rint(direction * step).astype(int)
        # Pixel (r, c) looks at (r + dy, c + dx).
        here = (slice(max(0, -dy), size - max(0, dy)), slice(max(0, -dx), size - max(0, dx)))
        there = (slice(max(0, dy), size + min(0, dy)), slice(max(0, dx), size + min(0, dx)))
        shaded[here] |= height[there] - step * PIXEL_SIZE * np.tan(elevation) > height[here]
    return shaded


def _sense(rng: np.random.Generator, suburb: _Suburb, near_infrared: np.ndarray) -> PaintedScene:
    """What three sensors record of a scene under its light, on its ground."""
    size, height = suburb.size, suburb.height
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(35, 60))
    sun = np.array([np.cos(azimuth), np.sin(azimuth)])
    slope_y, slope_x = np.gradient(height, PIXEL_SIZE)
    facing = 1 - 0.22 * np.clip(slope_x * sun[0] + slope_y * sun[1], -1.5, 1.5)
    light = np.where(_shadows(height, sun, elevation), rng.uniform(0.38, 0.5), facing)
    gain, haze, tint = rng.uniform(0.85, 1.35), rng.uniform(0.0, 0.08), rng.uniform(0.94, 1.06, size=3)
    seen = (suburb.colour * light[..., None] * tint * gain + haze) ** (1 / 1.5)  # a camera's gamma
    rgb = seen + rng.normal(0, 0.014, size=seen.shape)
    nir = near_infrared * (0.35 + 0.65 * light) * rng.uniform(0.8, 1.2) + rng.normal(0, 0.018, size=height.shape)

    y, x = np.mgrid[0:size, 0:size] * PIXEL_SIZE
    slope = rng.uniform(-0.06, 0.06, size=2)
    ground = rng.uniform(5, 600) + slope[0] * x + slope[1] * y + 0.6 * smooth_noise(rng, size, 100)
    # Matching and gridding smear walls over a pixel or two.
    surface = np.pad(height, 1, mode="edge")
    surface = sum(surface[r : r + size, c : c + size] for r in range(3) for c in range(3)) / 9
    dsm = ground + surface + rng.normal(0, 0.07, size=height.shape)
    return PaintedScene(_to_uint8(rgb), dsm.astype(np.float32), _to_uint8(nir), suburb.label)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Reflectance in [0, 1] as 1..255: 0 is kept for "no image here"."""
    return np.clip(np.rint(values * 255), 1, 255).astype(np.uint8)
