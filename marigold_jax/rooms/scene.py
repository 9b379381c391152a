"""What a scene consists of. Builders (`interior`, `still_life`, `street`) make scenes, `render` makes pictures of them.

The world is in metres: x right, y up, z towards the viewer, right-handed. Colours are linear RGB, not sRGB.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Int32, UInt8

Color = tuple[float, float, float]
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """What a surface reflects: `color` (albedo, 0 to 1), times the texture where there is one.

    A texture is sRGB and repeats; its v axis points up, row 0 is the top of the image. `gloss` is the strength of the
    mirror-like part, 0 (plaster) to 1 (polished). `glow` is light that the surface sends out by itself.
    """

    color: Color = (0.8, 0.8, 0.8)
    texture: UInt8[np.ndarray, "h w 3"] | None = None
    gloss: float = 0.0
    glow: Color = (0.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles. `normals` are those of the vertices, smooth or not, for shading; faces are seen from both sides."""

    vertices: Float32[np.ndarray, "n 3"]
    normals: Float32[np.ndarray, "n 3"]
    uv: Float32[np.ndarray, "n 2"]
    faces: Int32[np.ndarray, "m 3"]
    material: Int32[np.ndarray, " m"]  # of each face: an index into `materials`
    materials: tuple[Material, ...]


@dataclass(frozen=True, eq=False)
class Instance:
    """A mesh, somewhere: `transform` maps its coordinates to those of the world."""

    mesh: Mesh
    transform: Float32[np.ndarray, "4 4"]


@dataclass(frozen=True)
class Lamp:
    """A glowing ball, which casts soft shadows. `power`: the irradiance at a distance of one metre."""

    position: Vector
    radius: float
    power: Color


@dataclass(frozen=True)
class Sky:
    """What is seen, and shines in, where there is no surface. `sun`: irradiance on a surface that faces it."""

    zenith: Color
    horizon: Color
    sun: Color = (0.0, 0.0, 0.0)
    to_sun: Vector = (0.0, 1.0, 0.0)  # a unit vector
    sun_radius: float = 0.01  # radians


@dataclass(frozen=True, eq=False)
class Camera:
    """`axes`: its right, up and backward directions as columns. `field_of_view`: radians, horizontal."""

    position: Vector
    axes: Float32[np.ndarray, "3 3"]
    field_of_view: float


@dataclass(frozen=True, eq=False)
class Scene:
    """`ambient`: light that comes from everywhere, as the many reflections in a room do; occlusion dims it.

    `exposure` and `white_balance` are those of each camera: a factor, and one for each colour.
    """

    instances: tuple[Instance, ...]
    lamps: tuple[Lamp, ...]
    sky: Sky
    ambient: Color
    cameras: tuple[Camera, ...]
    exposure: tuple[float, ...]
    white_balance: tuple[Color, ...]
    names: tuple[str, ...] = field(default=())  # of the models in it, for the record
