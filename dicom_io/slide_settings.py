"""Settings of slides: what is read of them, and within which bounds.

Apart from the code that reads, because every command loads the settings, and not that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

Icc = Literal["none", "srgb"]


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """Bounds of the reader.

    Attributes
    ----------
    cache_bytes
        Compressed frames kept for tiles that come later.
    window_bytes
        Compressed frames fetched at a time; two windows are held.
    frames_bytes
        Decoded frames kept for tiles that show them too and come soon.
    decoded_bytes
        Decoded tiles that wait for the model; two batches are held at least. As much again is
        for frames that are laid side by side to be shown coarser than they are stored; one tile
        is made at a time at least.
    threads
        Decoding threads; 0 takes one more than there are processors, because each waits for the
        interpreter between frames.
    icc
        "srgb" brings pixels to sRGB by the slide's ICC profile; "none" takes them as they are
        stored, as models are trained.
    """

    cache_bytes: Annotated[int, Field(ge=0)] = 128 * 2**20
    window_bytes: Annotated[int, Field(ge=1)] = 16 * 2**20
    frames_bytes: Annotated[int, Field(ge=0)] = 64 * 2**20
    decoded_bytes: Annotated[int, Field(ge=0)] = 64 * 2**20
    threads: Annotated[int, Field(ge=0)] = 0
    icc: Icc = "none"


@dataclass(frozen=True, slots=True)
class SlideSettings:
    """What is read of a slide that offers a choice.

    Attributes
    ----------
    optical_path
        OpticalPathIdentifier; empty takes the only path, else the first of brightfield
        illumination, else the first.
    focal_plane
        sharpest looks at every plane in a sample of each region; middle; or a number from 1, the
        plane nearest to the glass.
    localise_frames
        Most frames that finding the cells may read, and as many again for the picture of the whole
        slide; where no low level serves, each sees a grid of them. A slide of 100 000 × 100 000 px
        at 0.25 µm has 9 600 at 1 µm and 153 000 as scanned.
    """

    optical_path: str = ""
    focal_plane: Literal["sharpest", "middle"] | int = "sharpest"
    localise_frames: int = 16384
