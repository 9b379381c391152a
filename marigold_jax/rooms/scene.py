"""The parts of a scene. `interior`, `still_life` and `street` build scenes, and `render` makes images of them.

The world is in metres: x right, y up, z towards the viewer, right-handed. Colours are linear RGB, not sRGB.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Int32, UInt8

Color = tuple[float, float, float]
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """The material of a surface.

    Attributes:
        color: albedo, 0 to 1; multiplied by the texture, if there is one.
        texture: sRGB, repeating; the v axis points up, and row 0 is the top of the image.
        gloss: strength of the mirror-like reflection, 0 (plaster) to 1 (polished).
        glow: emitted radiance.
    """

    color: Color = (0.8, 0.8, 0.8)
    texture: UInt8[np.ndarray, "h w 3"] | None = None
    gloss: float = 0.0
    glow: Color = (0.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles, visible from both sides. `normals` are vertex normals for shading, and may be smooth."""

    vertices: Float32[np.ndarray, "n 3"]
    normals: Float32[np.ndarray, "n 3"]
    uv: Float32[np.ndarray, "n 2"]
    faces: Int32[np.ndarray, "m 3"]
    material: Int32[np.ndarray, " m"]  # of each face: an index into `materials`
    materials: tuple[Material, ...]


@dataclass(frozen=True, eq=False)
class Instance:
    """A mesh in the world: `transform` maps its coordinates to world coordinates."""

    mesh: Mesh
    transform: Float32[np.ndarray, "4 4"]


@dataclass(frozen=True)
class Lamp:
    """A spherical light, which casts soft shadows. `power` is the irradiance at a distance of one metre."""

    position: Vector
    radius: float
    power: Color


@dataclass(frozen=True)
class Sky:
    """The sky, which is visible where there is no surface, and a source of light.

    Attributes:
        zenith, horizon: radiance.
        sun: irradiance of a surface that faces the sun.
        to_sun: unit vector towards the sun.
        sun_radius: radians.
    """

    zenith: Color
    horizon: Color
    sun: Color = (0.0, 0.0, 0.0)
    to_sun: Vector = (0.0, 1.0, 0.0)
    sun_radius: float = 0.01


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera.

    Attributes:
        position: in metres.
        axes: its right, up and backward directions as columns.
        field_of_view: radians, horizontal.
    """

    position: Vector
    axes: Float32[np.ndarray, "3 3"]
    field_of_view: float


@dataclass(frozen=True, eq=False)
class Scene:
    """A whole scene.

    Attributes:
        instances: all surfaces; the first instance is the building or the ground.
        lamps: local lights.
        sky: and sun.
        ambient: light from all directions, as from the many reflections in a room; reduced by occlusion.
        cameras: the views.
        exposure: a factor for each camera.
        white_balance: a factor for each colour, for each camera.
        names: of the models in the scene.
    """

    instances: tuple[Instance, ...]
    lamps: tuple[Lamp, ...]
    sky: Sky
    ambient: Color
    cameras: tuple[Camera, ...]
    exposure: tuple[float, ...]
    white_balance: tuple[Color, ...]
    names: tuple[str, ...] = field(default=())
