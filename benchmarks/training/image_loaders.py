"""Who feeds images."""

from __future__ import annotations

from . import (
    array_images,
    lance_images,
    litdata_images,
    mosaic_images,
    ours_images,
    stream_images,
    tensordict_images,
)
from .image_loader import ImageLoader


def everyone() -> list[ImageLoader]:
    """All contestants, ours first, whether installed or not."""
    families = (
        ours_images,
        array_images,
        tensordict_images,
        lance_images,
        litdata_images,
        mosaic_images,
        stream_images,
    )
    return [loader for family in families for loader in family.loaders()]


def by_name(name: str) -> ImageLoader:
    """The contestant of that name."""
    return next(loader for loader in everyone() if loader.name == name)
