"""Stain, camera and focus, made so uncertain that they say nothing about the type of a cell."""

from __future__ import annotations

import numpy as np
import simplejpeg
from scipy import ndimage

from models.records import UInt8

# Optical density of every 8-bit value: −ln(v / 255), black held at 1.
_DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255.0).astype(np.float32)


def restain(rng: np.random.Generator, rgb: UInt8, strength: float) -> UInt8:
    """Mix, scale and shift optical densities between channels at random.

    Parameters
    ----------
    rng
    rgb : (H, W, 3) uint8
    strength
        1 for another laboratory and camera, 0.4 for another day.
    """
    mix = np.eye(3) + rng.normal(0, 0.10 * strength, (3, 3))
    gain = np.exp(rng.normal(0, 0.20 * strength, 3) + rng.normal(0, 0.15 * strength))
    shift = rng.normal(0, 0.04 * strength, 3)
    density = _DENSITY[rgb] @ (mix * gain).astype(np.float32) + shift.astype(np.float32)
    stained: UInt8 = np.clip(np.exp(-density) * 255.0, 0, 255).astype(np.uint8)
    return stained


def greyed(rng: np.random.Generator, rgb: UInt8) -> UInt8:
    """Take a random part of the colour away."""
    share = rng.uniform(0, 0.7)
    grey = rgb.mean(-1, keepdims=True)
    paler: UInt8 = (rgb * (1 - share) + grey * share).astype(np.uint8)
    return paler


def imaged(rng: np.random.Generator, rgb: UInt8) -> UInt8:
    """What a scanner does to a field: focus, noise, JPEG."""
    if rng.random() < 0.4:
        sigma = rng.uniform(0.3, 1.1)
        rgb = ndimage.gaussian_filter(rgb, (sigma, sigma, 0))
    if rng.random() < 0.4:
        noise = rng.normal(0, rng.uniform(1, 6), rgb.shape)
        rgb = np.clip(rgb + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.6:
        sampling = "420" if rng.random() < 0.6 else "444"
        quality = int(rng.integers(60, 96))
        packed = simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality, "RGB", sampling)
        rgb = simplejpeg.decode_jpeg(packed)
    return rgb
