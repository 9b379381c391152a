"""Loads OBJ models as meshes, with normals, colours and textures, scaled to the size in the catalogue."""

import io
import posixpath
import warnings
from functools import lru_cache

import numpy as np
import trimesh
from jaxtyping import Float, UInt8
from PIL import Image, ImageFilter

from marigold_jax.rooms import meshes
from marigold_jax.rooms.assets import Entry
from marigold_jax.rooms.atlas import linear
from marigold_jax.rooms.scene import Material, Mesh

TEXTURE = 256  # pixels, at most
ALBEDO = (0.03, 0.9)  # albedos are clipped to this range, roughly from coal to snow
CLEAR = 0.55  # materials less opaque than this are glass
# Sample points of a triangle, as weights of its corners.
PROBES = np.array(
    [[1, 1, 1], [4, 1, 1], [1, 4, 1], [1, 1, 4], [2, 2, 1], [2, 1, 2], [1, 2, 2], [8, 1, 0], [0, 1, 8]], float
)
PROBES /= PROBES.sum(1, keepdims=True)
LEAF = 128  # faces whose texture has a mean opacity below this (of 255) are gaps between leaves, and are dropped


class Resolver(trimesh.resolvers.Resolver):
    """Gives trimesh the files beside a model. Its interface requires `write` too, which reading never calls."""

    def __init__(self, entry: Entry, folder: str):
        self.entry, self.folder = entry, folder

    def get(self, name: str) -> bytes:
        return self.entry.read(posixpath.normpath(posixpath.join(self.folder, name.strip().replace("\\", "/"))))

    def keys(self):
        return ()

    def namespaced(self, namespace: str) -> "Resolver":
        return Resolver(self.entry, posixpath.join(self.folder, namespace))

    def write(self, name: str, data: bytes) -> None:
        raise NotImplementedError("models are read, never written")


@lru_cache(maxsize=400)
def load_object(entry: Entry, *, glass: bool) -> Mesh:
    """The mesh of a library entry: rotated, scaled to its size, centred in x and z, standing on y = 0.

    `glass` keeps panes as dark, glossy surfaces; otherwise they are removed, and what is behind them is visible. Raises
    ValueError if the file has no surface.
    """
    resolver = Resolver(entry, posixpath.dirname(entry.path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of models that name normals without texture coordinates
        loaded = trimesh.load(io.BytesIO(entry.read(entry.path)), file_type="obj", resolver=resolver, process=False)
    pieces = loaded.geometry.values() if isinstance(loaded, trimesh.Scene) else [loaded]
    parts = [_part(piece, glass) for piece in pieces if isinstance(piece, trimesh.Trimesh) and len(piece.faces)]
    parts = [part for part in parts if part is not None]
    if not parts:
        raise ValueError(f"{entry.name}: {entry.path} has no surface")
    mesh = meshes.merge(parts)
    if entry.rotation is not None:
        matrix = np.eye(4)
        matrix[:3, :3] = np.reshape(entry.rotation, (3, 3))
        mesh = meshes.transform(mesh, matrix)
    return meshes.fit(mesh, entry.size)


def _part(piece: trimesh.Trimesh, glass: bool) -> Mesh | None:
    """The triangles of one material; None if there are none left."""
    source = getattr(piece.visual, "material", None)
    settings = getattr(source, "kwargs", None) or {}
    opacity = _number(settings.get("d"), 1.0)
    if opacity < CLEAR and not glass:
        return None
    image = getattr(source, "image", None)
    texture, alpha = (None, None) if image is None else _texture(image)
    diffuse = np.asarray(getattr(source, "diffuse", (200, 200, 200, 255)), np.float64)[:3] / 255
    albedo = linear(diffuse)
    if texture is not None:
        # Where a texture gives the colour, exporters often leave Kd black or grey.
        albedo = np.ones(3)
    elif opacity < CLEAR:
        albedo = albedo * 0.4 + 0.05
    specular = np.asarray(getattr(source, "specular", (0, 0, 0, 255)), np.float64)[:3].mean() / 255
    shininess = _number(settings.get("Ns"), getattr(source, "glossiness", 0.0) or 0.0)
    gloss = 0.7 if opacity < CLEAR else float(np.clip(specular * np.clip(np.log2(shininess + 1) / 9, 0, 1), 0, 0.6))
    faces, vertices = np.asarray(piece.faces), np.asarray(piece.vertices, np.float64)
    uv = getattr(piece.visual, "uv", None)
    uv = np.zeros((len(vertices), 2)) if uv is None or len(uv) != len(vertices) else np.nan_to_num(np.asarray(uv))
    across = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
    area = np.linalg.norm(across, axis=1)
    kept = area > 1e-12 * max(area.max(), 1e-30)
    if alpha is not None:
        kept &= _opaque(uv[faces], alpha)
    if not kept.any():
        return None
    faces, across = faces[kept], across[kept]
    if texture is not None:
        texture = _bleed(texture, uv[faces])
    material = Material(tuple(float(c) for c in albedo.clip(*ALBEDO)), texture, gloss)
    normals = np.zeros_like(vertices)
    if "vertex_normals" in piece._cache:  # those of the file
        normals = np.nan_to_num(np.asarray(piece.vertex_normals, np.float64)).copy()
    if not (np.linalg.norm(normals, axis=1) > 0.5).all():  # none in the file: flat
        vertices, uv = vertices[faces.ravel()], uv[faces.ravel()]
        normals, faces = np.repeat(across, 3, axis=0), np.arange(faces.size).reshape(-1, 3)
    return Mesh(
        vertices.astype(np.float32),
        meshes.unit(normals).astype(np.float32),
        uv.astype(np.float32),
        faces.astype(np.int32),
        np.zeros(len(faces), np.int32),
        (material,),
    )


def _number(value: object, default: float) -> float:
    try:
        return float(value[0] if isinstance(value, list | tuple | np.ndarray) else value)
    except (TypeError, ValueError, IndexError):
        return default


def _texture(image: Image.Image) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"] | None]:
    """A texture of at most `TEXTURE` pixels per side, and its opacity if it has an alpha channel."""
    scale = min(1.0, TEXTURE / max(image.size))
    size = tuple(max(1, round(side * scale)) for side in image.size)
    has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    image = image.convert("RGBA" if has_alpha else "RGB").resize(size, Image.Resampling.BOX)
    pixels = np.asarray(image)
    if not has_alpha:
        return pixels, None
    return np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3])


def _bleed(texture: UInt8[np.ndarray, "h w 3"], uv: Float[np.ndarray, "m 3 2"]) -> UInt8[np.ndarray, "h w 3"]:
    """Fills the parts of a texture that no face shows with the colours beside them.

    Many textures show leaves on a white background. From a distance, where a texel is the mean of many, the background
    would be visible.
    """
    height, width = texture.shape[:2]
    points = np.einsum("pk,mkc->mpc", PROBES, uv).reshape(-1, 2) % 1
    shown = np.zeros((height, width), bool)
    shown[
        ((1 - points[:, 1]) * height).astype(int).clip(0, height - 1),
        (points[:, 0] * width).astype(int).clip(0, width - 1),
    ] = True
    # A few large faces are not sampled densely enough by the probes; usually they show their whole texture.
    if len(uv) < 200 or shown.mean() > 0.7:
        return texture
    near = np.asarray(Image.fromarray(shown).convert("L").filter(ImageFilter.MaxFilter(3))) > 0
    weight = near[..., None].astype(np.float32)
    filled = texture * weight
    color, share, radius = filled.copy(), weight.copy(), 1
    while not share.all() and radius < max(height, width):
        for array in (filled, weight):
            for axis in (0, 1):
                array += np.roll(array, radius, axis) + np.roll(array, -radius, axis)
        new = (share == 0) & (weight > 0)
        color = np.where(new, filled / np.maximum(weight, 1e-6), color)
        share, radius = np.where(new, 1.0, share), 2 * radius
    return color.clip(0, 255).astype(np.uint8)


def _opaque(uv: Float[np.ndarray, "m 3 2"], alpha: UInt8[np.ndarray, "h w"]) -> np.ndarray:
    """Which faces are mostly opaque, sampled at nine points each."""
    points = np.einsum("pk,mkc->mpc", PROBES, uv) % 1
    height, width = alpha.shape
    column = (points[..., 0] * width).astype(int).clip(0, width - 1)
    row = ((1 - points[..., 1]) * height).astype(int).clip(0, height - 1)
    return alpha[row, column].mean(1) >= LEAF
