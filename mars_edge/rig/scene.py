"""A scene holds every number that determines a simulated frame; sampling one draws them all from one generator.

Which modality sees which species, and why, is physics put in on purpose (see `species.py` for the sources):

| species       | colour                         | depth                      | infrared                         |
|---------------|--------------------------------|----------------------------|----------------------------------|
| flat_print    | a photo: weak cues only        | a plane: seen              | dye ink vanishes; carbon stays   |
| bent_print    | a photo: weak cues only        | curved, draped: partly     | dye ink vanishes; carbon stays   |
| cutout_print  | real eyes, printed rest        | paper over a face: mostly  | dye ink vanishes; carbon stays   |
| screen_replay | a photo, glare, gamut shift    | a plane with holes: seen   | the panel is dark: seen          |
| silicone_mask | nearly right skin colour       | a true head: cannot be seen| wrong albedo, flat, eye openings |
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mars_edge.errors import UsageError

SPECIES: tuple[str, ...] = (
    "bona_fide",
    "flat_print",
    "bent_print",
    "cutout_print",
    "screen_replay",
    "silicone_mask",
)
ATTACKS = SPECIES[1:]


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where the object is: rotation in degrees, translation in mm in the infrared camera's frame (x right, y down)."""

    yaw_deg: float
    pitch_deg: float
    roll_deg: float
    x_mm: float
    y_mm: float
    distance_mm: float


@dataclass(frozen=True, kw_only=True)
class Lighting:
    """Light on the scene; levels are relative to the auto-exposed mean, colours are linear RGB.

    Directions point from the object to the light, unit length. `sun_ir` is sunlight in the infrared band in units of
    the emitter's irradiance at 500 mm.
    """

    ambient: tuple[float, float, float]
    key: tuple[float, float, float]
    key_direction: tuple[float, float, float]
    fill: tuple[float, float, float]
    fill_direction: tuple[float, float, float]
    sun_ir: float
    ambient_ir: float


@dataclass(frozen=True, kw_only=True)
class Imaging:
    """How well the three simulated cameras do: exposure in stops, blur and disparity noise in pixels."""

    exposure_ev: float
    white_balance: tuple[float, float]
    blur_px: float
    noise: float
    ir_exposure_ev: float
    ir_noise: float
    ir_blur_px: float
    depth_noise_px: float
    depth_dropout: float


@dataclass(frozen=True, kw_only=True)
class Wear:
    """What a simulated person wears: glasses (0 none, 1 clear, 2 sunglasses), a hat (0 none, else its colour seed)."""

    glasses: int = 0
    hat: int = 0


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """What an attack is made of; fields that a species does not use keep their defaults.

    curvature_per_mm: 1/radius of a bent sheet. drape: share of the bearer's own relief that shows through the sheet.
    worn: the bearer's hair, neck and shoulders are seen around it. carbon: share of ink that absorbs infrared.
    infrared_photo: the sheet carries a print of an infrared picture. holes: which parts are cut out.
    silhouette: a held sheet is cut along the outline of the photographed head and shoulders, so it has no background.
    """

    seed: int = 0
    width_mm: float = 400.0
    height_mm: float = 400.0
    scale: float = 1.0
    curvature_per_mm: float = 0.0
    drape: float = 0.0
    worn: bool = False
    silhouette: bool = False
    carbon: float = 0.0
    infrared_photo: bool = False
    paper_ir: float = 0.8
    contrast: float = 1.0
    saturation: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    blur_cells: float = 0.0
    grain: float = 0.0
    specular: float = 0.02
    gloss: float = 12.0
    holes: str = ""
    gap_mm: float = 0.0
    level: float = 1.0
    moire: float = 0.0
    infrared_albedo: float = 0.05
    wrap: float = 0.0
    relief_ir: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that determines a simulated frame; equal scenes render to equal arrays.

    identity: whose face is shown. bearer: who stands behind an attack (the same as identity for bona_fide).
    seed: noise of all three sensors. background_seed, background_mm: the wall behind.
    """

    species: str
    identity: int
    bearer: int
    wear: Wear
    eyes_closed: bool
    pose: Pose
    lighting: Lighting
    imaging: Imaging
    artefact: Artefact
    background_seed: int
    background_mm: float
    seed: int

    @property
    def live(self) -> bool:
        """True for bona_fide, False for every attack."""
        return self.species == "bona_fide"


def sample_scene(rng: np.random.Generator, species: str | None = None, *, identities: range) -> Scene:
    """Return a simulated scene whose people all come from `identities`.

    Args:
        rng: the only source of chance; the same state gives the same scene.
        species: one of SPECIES, or None for bona fide with probability one half and else any attack.
        identities: at least two non-negative identity numbers.

    Raises:
        UsageError: unknown species, or fewer than two identities.
    """
    if species is None:
        species = "bona_fide" if rng.random() < 0.5 else str(rng.choice(ATTACKS))
    if species not in SPECIES:
        raise UsageError(f"unknown species {species!r}; choose one of {', '.join(SPECIES)}")
    if len(identities) < 2 or min(identities) < 0:
        raise UsageError(f"identities {identities!r} must hold at least two numbers, none negative")
    first, second = (int(i) for i in rng.choice(len(identities), 2, replace=False))
    identity = identities[first]
    return Scene(
        species=species,
        identity=identity,
        bearer=identity if species == "bona_fide" else identities[second],
        wear=_sample_wear(rng),
        eyes_closed=bool(rng.random() < 0.06),
        pose=_sample_pose(rng),
        lighting=sample_lighting(rng),
        imaging=_sample_imaging(rng),
        artefact=_sample_artefact(rng, species),
        background_seed=int(rng.integers(1 << 31)),
        background_mm=float(rng.uniform(800.0, 2000.0)),
        seed=int(rng.integers(1 << 31)),
    )


def _sample_wear(rng: np.random.Generator) -> Wear:
    glasses = int(rng.choice(3, p=(0.72, 0.24, 0.04)))
    return Wear(glasses=glasses, hat=int(rng.integers(1, 1 << 20)) if rng.random() < 0.14 else 0)


def _sample_pose(rng: np.random.Generator) -> Pose:
    distance = float(np.clip(rng.normal(480.0, 75.0), 350.0, 700.0))
    return Pose(
        yaw_deg=float(np.clip(rng.normal(0.0, 12.0), -32.0, 32.0)),
        pitch_deg=float(np.clip(rng.normal(0.0, 8.0), -22.0, 22.0)),
        roll_deg=float(np.clip(rng.normal(0.0, 7.0), -22.0, 22.0)),
        x_mm=float(rng.normal(0.0, 0.025 * distance)),
        y_mm=float(rng.normal(0.0, 0.025 * distance)),
        distance_mm=distance,
    )


def _direction(rng: np.random.Generator, spread: float) -> tuple[float, float, float]:
    v = np.array([rng.normal(0.0, spread), rng.normal(-0.5, 0.5), -1.0])
    v /= np.linalg.norm(v)
    return (float(v[0]), float(v[1]), float(v[2]))


def _temperature(warmth: float) -> tuple[float, float, float]:
    """Linear RGB of a light between bluish (-1) and tungsten (+1), green held at 1."""
    return (float(np.exp(0.32 * warmth)), 1.0, float(np.exp(-0.45 * warmth)))


def _scaled(colour: tuple[float, float, float], level: float) -> tuple[float, float, float]:
    return (colour[0] * level, colour[1] * level, colour[2] * level)


def sample_lighting(rng: np.random.Generator) -> Lighting:
    """Return indoor light with one key and one fill, now and then direct sun that reaches the infrared band too."""
    sunny = rng.random() < 0.15
    ambient = float(rng.uniform(0.15, 0.7))
    key = float(rng.uniform(0.2, 1.1)) * (2.0 if sunny else 1.0)
    warmth = float(rng.normal(0.1, 0.5))
    return Lighting(
        ambient=_scaled(_temperature(warmth + float(rng.normal(0.0, 0.2))), ambient),
        key=_scaled(_temperature(warmth), key),
        key_direction=_direction(rng, 0.9),
        fill=_scaled(_temperature(float(rng.normal(0.0, 0.5))), float(rng.uniform(0.0, 0.4))),
        fill_direction=_direction(rng, 1.2),
        sun_ir=float(rng.uniform(0.4, 1.6)) if sunny else float(rng.uniform(0.0, 0.12)),
        ambient_ir=float(rng.uniform(0.4, 0.9)) if sunny else float(rng.uniform(0.0, 0.1)),
    )


def _sample_imaging(rng: np.random.Generator) -> Imaging:
    return Imaging(
        exposure_ev=float(rng.normal(0.0, 0.45)),
        white_balance=(float(np.exp(rng.normal(0.0, 0.08))), float(np.exp(rng.normal(0.0, 0.08)))),
        blur_px=float(rng.uniform(0.3, 1.3)),
        noise=float(np.exp(rng.normal(np.log(0.022), 0.5))),
        ir_exposure_ev=float(rng.normal(0.0, 0.35)),
        ir_noise=float(np.exp(rng.normal(np.log(0.022), 0.4))),
        ir_blur_px=float(rng.uniform(0.35, 1.1)),
        depth_noise_px=float(np.exp(rng.normal(np.log(0.14), 0.45))),
        depth_dropout=float(np.clip(rng.exponential(0.06), 0.0, 0.45)),
    )


def _sample_artefact(rng: np.random.Generator, species: str) -> Artefact:
    if species == "bona_fide":
        return Artefact()
    if species == "screen_replay":
        return _sample_panel(rng)
    if species == "silicone_mask":
        return _sample_mask(rng)
    return _sample_sheet(rng, species)


def _tint(rng: np.random.Generator, sigma: float) -> tuple[float, float, float]:
    r, g, b = np.exp(rng.normal(0.0, sigma, 3))
    return (float(r), float(g), float(b))


def _sample_sheet(rng: np.random.Generator, species: str) -> Artefact:
    worn = species == "cutout_print" or (species == "bent_print" and bool(rng.random() < 0.5))
    carbon = float(rng.uniform(0.75, 1.0)) if rng.random() < 0.8 else float(rng.uniform(0.0, 0.25))
    radius = float(rng.uniform(85.0, 230.0))
    bent = species == "bent_print" or (species == "cutout_print" and rng.random() < 0.5)
    # A worn sheet is cut along the face; a held one is a poster that mostly overfills the view.
    width = float(rng.uniform(145.0, 185.0) if worn else rng.uniform(210.0, 420.0))
    height = float(rng.uniform(200.0, 250.0) if worn else rng.uniform(270.0, 420.0))
    return Artefact(
        seed=int(rng.integers(1 << 31)),
        width_mm=width,
        height_mm=height,
        scale=float(rng.uniform(0.9, 1.08)),
        curvature_per_mm=1.0 / radius if bent else 0.0,
        drape=float(rng.uniform(0.3, 0.9)) if species == "bent_print" and worn else 0.0,
        worn=worn,
        silhouette=not worn and bool(rng.random() < 0.65),
        carbon=carbon,
        infrared_photo=bool(rng.random() < 0.85),
        paper_ir=float(rng.uniform(0.6, 0.85)),
        contrast=float(rng.uniform(0.75, 1.0)),
        saturation=float(rng.uniform(0.75, 1.1)),
        tint=_tint(rng, 0.06),
        blur_cells=float(rng.uniform(0.0, 0.9)),
        grain=float(rng.uniform(0.0, 0.05)),
        specular=float(rng.uniform(0.005, 0.07)),
        gloss=float(rng.uniform(6.0, 30.0)),
        holes=str(rng.choice(("eyes", "eyes+nose", "eyes+mouth"))) if species == "cutout_print" else "",
        gap_mm=float(rng.uniform(2.0, 14.0)),
    )


def _sample_panel(rng: np.random.Generator) -> Artefact:
    return Artefact(
        seed=int(rng.integers(1 << 31)),
        width_mm=float(rng.uniform(210.0, 420.0)),
        height_mm=float(rng.uniform(270.0, 420.0)),
        scale=float(rng.uniform(0.9, 1.08)),
        contrast=float(rng.uniform(0.85, 1.0)),
        saturation=float(rng.uniform(0.85, 1.15)),
        tint=_tint(rng, 0.08),
        blur_cells=float(rng.uniform(0.0, 0.7)),
        specular=float(rng.uniform(0.005, 0.03)),
        gloss=float(np.exp(rng.uniform(np.log(400.0), np.log(4000.0)))),
        level=float(rng.uniform(0.6, 1.8)),
        moire=float(rng.uniform(0.0, 0.03)),
        infrared_albedo=float(rng.uniform(0.02, 0.08)),
    )


def _sample_mask(rng: np.random.Generator) -> Artefact:
    return Artefact(
        seed=int(rng.integers(1 << 31)),
        worn=True,
        tint=_tint(rng, 0.05),
        saturation=float(rng.uniform(0.8, 1.1)),
        specular=float(rng.uniform(0.02, 0.09)),
        gloss=float(rng.uniform(5.0, 12.0)),
        holes="eyes",
        gap_mm=float(rng.uniform(2.0, 6.0)),
        infrared_albedo=float(rng.uniform(0.4, 0.85)),
        wrap=float(rng.uniform(0.4, 0.7)),
        relief_ir=float(rng.uniform(0.0, 0.2)),
    )
