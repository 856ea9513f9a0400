"""Captioned scenes drawn by code: the stimuli of the simulated dataset and of the embedded models.

A scene is a setting (sky and ground), and one or two coloured objects with a size and a place.
Every scene depends on ``(seed, index)`` alone, so any subset can be drawn again byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (212, 38, 34),
    "orange": (244, 136, 22),
    "yellow": (246, 214, 46),
    "green": (40, 150, 62),
    "blue": (36, 88, 206),
    "purple": (134, 52, 168),
    "white": (244, 244, 240),
    "black": (34, 32, 38),
}

#: Sky (top, horizon) and ground (horizon, bottom) colours of each setting.
SETTINGS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "beach": ((110, 184, 236), (196, 228, 244), (240, 220, 164), (226, 196, 132)),
    "meadow": ((92, 156, 230), (190, 220, 246), (128, 196, 84), (72, 146, 52)),
    "desert": ((246, 208, 140), (252, 234, 192), (224, 156, 82), (184, 104, 52)),
    "snow": ((166, 182, 200), (214, 222, 230), (246, 248, 252), (208, 220, 236)),
    "night": ((8, 10, 40), (32, 38, 88), (22, 40, 36), (10, 20, 22)),
    "sunset": ((92, 48, 118), (250, 134, 70), (104, 60, 84), (52, 28, 54)),
    "lake": ((150, 196, 224), (210, 230, 236), (52, 116, 168), (24, 66, 124)),
    "room": ((214, 190, 164), (226, 206, 182), (142, 92, 58), (112, 68, 40)),
}

KINDS = ("house", "tree", "car", "ball", "person", "umbrella", "mushroom", "flower", "boat", "kite")
SIZES: dict[str, float] = {"small": 0.17, "large": 0.30}
PLACES: dict[str, float] = {"left": 0.26, "middle": 0.5, "right": 0.74}

#: Scenes are drawn so many times larger than asked for.
_SUPERSAMPLE = 3
_BROWN = (112, 72, 40)
_DARK = (30, 28, 32)
_SKIN = (232, 184, 146)
_GLASS = (182, 220, 236)
_LEAF = (44, 132, 52)

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Thing:
    """One object of a scene: what it is, its colour, size and place (x, y as fractions of the image)."""

    kind: str
    colour: str
    size: str
    place: str
    x: float
    y: float
    half: float


@dataclass(frozen=True)
class Scene:
    """A drawn scene: its setting, the height of its horizon, a light level and its objects."""

    setting: str
    horizon: float
    light: float
    things: tuple[Thing, ...]
    texture_seed: int


def make_scene(seed: int, index: int) -> Scene:
    """Sample the contents of scene ``index`` of the family ``seed`` (the same every time)."""
    rng = np.random.default_rng([seed, index])
    setting = str(rng.choice(list(SETTINGS)))
    horizon = float(rng.uniform(0.48, 0.62))
    light = float(rng.uniform(0.88, 1.08))
    n_things = 2 if rng.random() < 0.35 else 1
    places = rng.permutation(list(PLACES))[:n_things]
    colours = rng.permutation(list(COLOURS))[:n_things]
    things = []
    for place, colour in zip(places, colours, strict=True):
        size = str(rng.choice(list(SIZES)))
        half = SIZES[size] * float(rng.uniform(0.92, 1.08))
        x = PLACES[str(place)] + float(rng.uniform(-0.03, 0.03))
        # Small things are further away: their feet are nearer to the horizon.
        feet = horizon + (0.16 if size == "small" else 0.30) + float(rng.uniform(-0.04, 0.04))
        kind = str(rng.choice(KINDS))
        y = feet - half
        if kind == "kite":
            y = max(half + 0.02, horizon - half - float(rng.uniform(0.0, 0.08)))
        things.append(Thing(kind, str(colour), size, str(place), x, y, half))
    things.sort(key=lambda t: t.half)  # far ones first, so that near ones cover them
    return Scene(setting, horizon, light, tuple(things), int(rng.integers(2**31)))


def captions(scene: Scene) -> tuple[str, str]:
    """Two captions of a scene, as two people might describe it; words from a closed vocabulary."""
    ordered = sorted(scene.things, key=lambda t: -t.half)
    full = " and ".join(f"a {t.size} {t.colour} {t.kind} on the {t.place}" for t in ordered)
    brief = " with ".join(f"{'an' if t.colour == 'orange' else 'a'} {t.colour} {t.kind}" for t in ordered)
    return f"{full} of a {scene.setting} scene", f"{scene.setting} scene showing {brief}"


def vocabulary() -> list[str]:
    """All words that :func:`captions` can use, sorted."""
    words = {"a", "an", "and", "on", "the", "of", "with", "scene", "showing"}
    words |= {*COLOURS, *SETTINGS, *KINDS, *SIZES, *PLACES}
    return sorted(words)


def attributes(scene: Scene) -> np.ndarray:
    """Semantic attributes of a scene, the features of the simulated higher visual area.

    Returns
    -------
    ndarray of float32, shape (n_attributes,)
        One-hot setting; summed visual size of the objects by kind and by colour; conjunctions of kind and
        place, and of kind and colour; the number of objects.
    """
    setting = np.zeros(len(SETTINGS))
    setting[list(SETTINGS).index(scene.setting)] = 1.0
    kind = np.zeros(len(KINDS))
    colour = np.zeros(len(COLOURS))
    kind_place = np.zeros((len(KINDS), len(PLACES)))
    kind_colour = np.zeros((len(KINDS), len(COLOURS)))
    for thing in scene.things:
        k = KINDS.index(thing.kind)
        c = list(COLOURS).index(thing.colour)
        weight = thing.half / SIZES["large"]
        kind[k] += 0.5 + 0.5 * weight
        colour[c] += 0.5 + 0.5 * weight
        kind_place[k, list(PLACES).index(thing.place)] += weight
        kind_colour[k, c] += weight
    count = np.array([len(scene.things) - 1.0])
    parts = [setting, kind, colour, kind_place.ravel(), kind_colour.ravel(), count]
    return np.concatenate(parts).astype(np.float32)


def draw(scene: Scene, size: int = 128) -> np.ndarray:
    """Draw a scene, uint8 (size, size, 3); drawn larger and then reduced, to smooth its edges."""
    side = size * _SUPERSAMPLE
    image = Image.fromarray(_background(scene, side))
    pen = ImageDraw.Draw(image)
    _scenery(pen, scene, side)
    for thing in scene.things:
        _shadow(pen, thing, side)
        _DRAWERS[thing.kind](_Pen(pen, thing, side), _lit(COLOURS[thing.colour], scene.light))
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))


def _lit(colour: RGB, light: float) -> RGB:
    r, g, b = (int(min(255, c * light)) for c in colour)
    return r, g, b


def _background(scene: Scene, side: int) -> np.ndarray:
    sky_top, sky_low, ground_high, ground_low = (np.array(c, float) for c in SETTINGS[scene.setting])
    rows = np.linspace(0, 1, side)[:, None]
    up = np.clip(rows / scene.horizon, 0, 1)
    down = np.clip((rows - scene.horizon) / (1 - scene.horizon), 0, 1)
    column = np.where(rows < scene.horizon, sky_top + up * (sky_low - sky_top), 0.0)
    column = np.where(rows >= scene.horizon, ground_high + down * (ground_low - ground_high), column)
    pixels = np.repeat((column * scene.light)[:, None, :], side, axis=1)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _scenery(pen: ImageDraw.ImageDraw, scene: Scene, side: int) -> None:
    """Draw the fixed landmarks of a setting: sea, dunes, stars, sun, hills, window."""
    h = scene.horizon
    rng = np.random.default_rng(scene.texture_seed)
    shift = float(rng.uniform(-0.1, 0.1))

    def ellipse(x: float, y: float, rx: float, ry: float, fill: RGB) -> None:
        box = ((x - rx) * side, (y - ry) * side, (x + rx) * side, (y + ry) * side)
        pen.ellipse(box, fill=_lit(fill, scene.light))

    def polygon(points: list[tuple[float, float]], fill: RGB) -> None:
        pen.polygon([(x * side, y * side) for x, y in points], fill=_lit(fill, scene.light))

    if scene.setting == "beach":
        polygon([(0, h - 0.12), (1, h - 0.12), (1, h + 0.02), (0, h + 0.02)], (40, 128, 190))
    elif scene.setting == "meadow":
        ellipse(0.25 + shift, h + 0.06, 0.42, 0.14, (104, 176, 74))
        ellipse(0.86 + shift, h + 0.07, 0.40, 0.16, (88, 164, 66))
    elif scene.setting == "desert":
        ellipse(0.3 + shift, h + 0.10, 0.50, 0.16, (212, 140, 70))
        ellipse(0.85, 0.14, 0.08, 0.08, (255, 250, 220))
    elif scene.setting == "snow":
        for x, top in ((0.2 + shift, 0.26), (0.75 + shift, 0.18)):
            polygon([(x - 0.3, h), (x, h - top), (x + 0.3, h)], (128, 146, 172))
            polygon([(x - 0.1, h - top * 0.66), (x, h - top), (x + 0.1, h - top * 0.66)], (250, 252, 255))
    elif scene.setting == "night":
        ellipse(0.8 + shift, 0.16, 0.07, 0.07, (240, 236, 206))
        for x, y in rng.uniform([0, 0], [1, h - 0.1], size=(16, 2)):
            ellipse(float(x), float(y), 0.008, 0.008, (230, 230, 240))
    elif scene.setting == "sunset":
        ellipse(0.5 + 2 * shift, h - 0.02, 0.15, 0.15, (255, 214, 110))
        polygon([(0, h), (1, h), (1, h + 0.16), (0, h + 0.16)], (104, 60, 84))
    elif scene.setting == "lake":
        polygon([(0, h), (0.22 + shift, h - 0.14), (0.5 + shift, h)], (70, 120, 92))
        polygon([(0.4 + shift, h), (0.72 + shift, h - 0.18), (1.1, h)], (56, 104, 84))
    elif scene.setting == "room":
        for x0, y0, x1, y1, fill in (
            (0.36, 0.08, 0.64, 0.34, (250, 250, 244)),
            (0.385, 0.105, 0.615, 0.315, (150, 200, 236)),
        ):
            left, right = x0 + shift, x1 + shift
            polygon([(left, y0), (right, y0), (right, y1), (left, y1)], fill)


def _shadow(pen: ImageDraw.ImageDraw, thing: Thing, side: int) -> None:
    if thing.kind == "kite":
        return
    y = thing.y + thing.half * 0.97
    width, above, below = thing.half * 0.75, thing.half * 0.08, thing.half * 0.1
    box = (thing.x - width, y - above, thing.x + width, y + below)
    pen.ellipse([v * side for v in box], fill=(48, 42, 44))


class _Pen:
    """Draws in a thing's own coordinates: x and y from -1 to 1, y down."""

    def __init__(self, pen: ImageDraw.ImageDraw, thing: Thing, side: int) -> None:
        self._pen, self._thing, self._side = pen, thing, side

    def _at(self, x: float, y: float) -> tuple[float, float]:
        t = self._thing
        return (t.x + x * t.half) * self._side, (t.y + y * t.half) * self._side

    def polygon(self, fill: RGB, *points: tuple[float, float]) -> None:
        self._pen.polygon([self._at(x, y) for x, y in points], fill=fill)

    def box(self, fill: RGB, x0: float, y0: float, x1: float, y1: float) -> None:
        self._pen.rectangle([*self._at(x0, y0), *self._at(x1, y1)], fill=fill)

    def ellipse(self, fill: RGB, x: float, y: float, rx: float, ry: float) -> None:
        self._pen.ellipse([*self._at(x - rx, y - ry), *self._at(x + rx, y + ry)], fill=fill)

    def pie(self, fill: RGB, x: float, y: float, r: float, start: float, end: float) -> None:
        self._pen.pieslice([*self._at(x - r, y - r), *self._at(x + r, y + r)], start, end, fill=fill)


def _house(p: _Pen, c: RGB) -> None:
    p.box(c, -0.75, -0.15, 0.75, 1.0)
    p.polygon(_BROWN, (-0.95, -0.15), (0, -1.0), (0.95, -0.15))
    p.box(_DARK, -0.15, 0.4, 0.2, 1.0)
    p.box(_GLASS, -0.6, 0.1, -0.3, 0.4)
    p.box(_GLASS, 0.32, 0.1, 0.62, 0.4)


def _tree(p: _Pen, c: RGB) -> None:
    p.box(_BROWN, -0.12, 0.4, 0.12, 1.0)
    p.polygon(c, (-0.62, 0.55), (0, -0.35), (0.62, 0.55))
    p.polygon(c, (-0.5, 0.08), (0, -0.7), (0.5, 0.08))
    p.polygon(c, (-0.36, -0.35), (0, -1.0), (0.36, -0.35))


def _car(p: _Pen, c: RGB) -> None:
    p.polygon(c, (-0.55, 0.15), (-0.35, -0.3), (0.35, -0.3), (0.6, 0.15))
    p.polygon(_GLASS, (-0.42, 0.12), (-0.28, -0.2), (-0.04, -0.2), (-0.04, 0.12))
    p.polygon(_GLASS, (0.04, 0.12), (0.04, -0.2), (0.3, -0.2), (0.45, 0.12))
    p.box(c, -1.0, 0.12, 1.0, 0.7)
    for x in (-0.55, 0.55):
        p.ellipse(_DARK, x, 0.72, 0.27, 0.27)
        p.ellipse((200, 200, 204), x, 0.72, 0.12, 0.12)


def _ball(p: _Pen, c: RGB) -> None:
    p.ellipse(c, 0, 0.25, 0.75, 0.75)
    p.pie((250, 250, 248), 0, 0.25, 0.75, 250, 290)
    p.pie((250, 250, 248), 0, 0.25, 0.75, 10, 50)
    p.pie((250, 250, 248), 0, 0.25, 0.75, 130, 170)


def _person(p: _Pen, c: RGB) -> None:
    p.box(_DARK, -0.26, 0.35, -0.04, 1.0)
    p.box(_DARK, 0.04, 0.35, 0.26, 1.0)
    p.polygon(c, (-0.3, -0.45), (0.3, -0.45), (0.34, 0.42), (-0.34, 0.42))
    p.polygon(c, (-0.3, -0.45), (-0.62, 0.2), (-0.46, 0.26), (-0.2, -0.2))
    p.polygon(c, (0.3, -0.45), (0.62, 0.2), (0.46, 0.26), (0.2, -0.2))
    p.ellipse(_SKIN, 0, -0.72, 0.26, 0.28)
    p.pie(_BROWN, 0, -0.74, 0.27, 180, 360)


def _umbrella(p: _Pen, c: RGB) -> None:
    p.box(_BROWN, -0.05, -0.4, 0.05, 1.0)
    p.pie(c, 0, -0.1, 0.88, 180, 360)
    for x in (-0.59, 0.0, 0.59):
        p.pie((250, 248, 240), x, -0.1, 0.2, 180, 360)


def _mushroom(p: _Pen, c: RGB) -> None:
    p.polygon((240, 230, 206), (-0.24, 0.1), (0.24, 0.1), (0.34, 1.0), (-0.34, 1.0))
    p.pie(c, 0, 0.2, 0.9, 180, 360)
    for x, y, r in ((-0.45, -0.1, 0.14), (0.05, -0.4, 0.17), (0.5, -0.08, 0.13)):
        p.ellipse((250, 248, 240), x, y, r, r)


def _flower(p: _Pen, c: RGB) -> None:
    p.box(_LEAF, -0.06, -0.2, 0.06, 1.0)
    p.polygon(_LEAF, (0, 0.75), (0.5, 0.35), (0.15, 0.85))
    p.polygon(_LEAF, (0, 0.85), (-0.5, 0.45), (-0.15, 0.95))
    for angle in range(0, 360, 60):
        x, y = 0.4 * np.cos(np.deg2rad(angle)), 0.4 * np.sin(np.deg2rad(angle))
        p.ellipse(c, float(x), float(y) - 0.42, 0.27, 0.27)
    p.ellipse((250, 206, 60), 0, -0.42, 0.22, 0.22)


def _boat(p: _Pen, c: RGB) -> None:
    p.box(_BROWN, -0.06, -0.95, 0.04, 0.5)
    p.polygon((248, 246, 238), (0.06, -0.95), (0.06, 0.3), (0.85, 0.3))
    p.polygon((226, 222, 212), (-0.1, -0.7), (-0.1, 0.3), (-0.65, 0.3))
    p.polygon(c, (-0.98, 0.45), (0.98, 0.45), (0.65, 1.0), (-0.65, 1.0))


def _kite(p: _Pen, c: RGB) -> None:
    p.polygon(c, (0, -1.0), (0.6, -0.25), (0, 0.6), (-0.6, -0.25))
    p.polygon((250, 248, 240), (0, -1.0), (0.06, -0.25), (0, 0.6), (-0.06, -0.25))
    p.polygon((250, 248, 240), (-0.6, -0.25), (0, -0.31), (0.6, -0.25), (0, -0.19))
    for x, y in ((0.12, 0.72), (-0.1, 0.86), (0.1, 1.0)):
        p.ellipse(c, x, y, 0.1, 0.07)


_DRAWERS: dict[str, Callable[[_Pen, RGB], None]] = {
    "house": _house,
    "tree": _tree,
    "car": _car,
    "ball": _ball,
    "person": _person,
    "umbrella": _umbrella,
    "mushroom": _mushroom,
    "flower": _flower,
    "boat": _boat,
    "kite": _kite,
}
