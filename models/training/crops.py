"""Crops of single cells, made in batches: what the type branch is trained on.

Shape legend: n crops of 64 × 64 px at 0.25 µm per px, cells held as S × S source images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.composing import UM_PER_PX, CellImage, red_cell_field

CROP_PX = 64
SOURCE_PX = 144
CPU = torch.device("cpu")
_BACKGROUNDS = 256


class CropMaker:
    """Batches of cells turned, scaled, restained and laid on red cells, all in tensors.

    Parameters
    ----------
    cells
    types
        Cell type keys in the order of the labels.
    seed
    strength
        Of the stain's randomness; 1 is another laboratory and camera.
    device
        Where crops are made.
    """

    def __init__(
        self,
        cells: Sequence[CellImage],
        types: Sequence[str],
        seed: int,
        strength: float = 1.0,
        device: torch.device = CPU,
    ) -> None:
        outlines = [_padded(cell.outline[..., None].astype(np.uint8) * 255) for cell in cells]
        self.raw = torch.stack([_padded(cell.rgb) for cell in cells]).to(device)
        self.balanced = torch.stack([_padded(cell.white_balanced()) for cell in cells]).to(device)
        self.outline = torch.stack(outlines).to(device)
        # The outline's own centre: source images are not always centred on their cell.
        self.centre = torch.stack([_centre(outline[0]) for outline in outlines]).to(device)
        self.um_per_px = torch.tensor([cell.um_per_px for cell in cells], device=device)
        self.label = torch.tensor([types.index(cell.type) for cell in cells], device=device)
        # Every type as often as any other: a third of the published cells are blasts, in a marrow a
        # fiftieth.
        weight = 1 / torch.bincount(self.label, minlength=len(types))[self.label].float()
        self.weight = weight / weight.sum()
        self.strength = strength
        self.device = device
        self.random = torch.Generator(device).manual_seed(seed)
        self.background = _backgrounds(np.random.default_rng(seed)).to(device)

    def training_batch(self, n: int) -> tuple[Tensor, Tensor]:
        """(n, 3, 64, 64) images 0 to 1 and their labels (n,)."""
        index = torch.multinomial(self.weight, n, replacement=True, generator=self.random)
        canvas = self._field(n)
        canvas = self._with_neighbour(canvas)
        cell, alpha = self._turned(index, self._uniform(n, 2, low=-0.19, high=0.19))
        canvas = canvas * (1 - alpha) + self.restained(cell, self.strength) * alpha
        return self._imaged(self.restained(canvas, 0.5 * self.strength)), self.label[index]

    def plain_batch(self, index: Tensor, quarter_turns: int) -> Tensor:
        """Cells as the demonstration slide shows them: white balanced, at their own scale."""
        n = len(index)
        field = self.background[torch.arange(n) % len(self.background)] * (240 / 255)
        cell, alpha = self._sampled(
            self.balanced[index],
            index,
            angle=torch.full((n,), quarter_turns * torch.pi / 2, device=self.device),
            scale=torch.ones(n, device=self.device),
            flip=torch.ones(n, device=self.device),
            shift=torch.zeros(n, 2, device=self.device),
        )
        return field * (1 - alpha) + cell * alpha

    def _field(self, n: int) -> Tensor:
        chosen = torch.randint(
            len(self.background), (n,), generator=self.random, device=self.device
        )
        glass = self._uniform(n, 3, 1, 1, low=0.80, high=0.99)
        return self.restained(self.background[chosen] * glass, self.strength)

    def _with_neighbour(self, canvas: Tensor) -> Tensor:
        """Another cell beside the crop's own, in a third of the crops."""
        n = len(canvas)
        index = torch.multinomial(self.weight, n, replacement=True, generator=self.random)
        direction = self._uniform(n, low=0.0, high=2 * torch.pi)
        distance = self._uniform(n, low=1.05, high=1.6)
        shift = torch.stack((direction.cos(), direction.sin()), 1) * distance[:, None]
        cell, alpha = self._turned(index, shift)
        alpha = alpha * (self._uniform(n, 1, 1, 1) < 0.33)
        return canvas * (1 - alpha) + self.restained(cell, self.strength) * alpha

    def _turned(self, index: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        n = len(index)
        small = self.um_per_px[index] > 0.15
        # The smaller images' scale is an estimate: theirs varies more, down to the stated one.
        spread = torch.where(small, self._uniform(n, low=-0.40, high=0.10), self._normal(n) * 0.10)
        as_published = self._uniform(n, 1, 1, 1) < 0.25
        return self._sampled(
            torch.where(as_published, self.raw[index], self.balanced[index]),
            index,
            angle=self._uniform(n, low=0.0, high=2 * torch.pi),
            scale=spread.exp(),
            flip=torch.where(self._uniform(n) < 0.5, -1.0, 1.0),
            shift=shift,
        )

    def _sampled(
        self,
        rgb: Tensor,
        index: Tensor,
        *,
        angle: Tensor,
        scale: Tensor,
        flip: Tensor,
        shift: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Crops (n, 3, 64, 64) and their alpha (n, 1, 64, 64), smoothed against aliasing.

        `shift` moves the cell, in half crops along x and y.
        """
        reach = CROP_PX * UM_PER_PX / (SOURCE_PX * self.um_per_px[index] * scale)
        cos, sin = angle.cos() * reach, angle.sin() * reach
        turn = torch.stack(
            (torch.stack((cos * flip, -sin), 1), torch.stack((sin * flip, cos), 1)), 1
        )
        offset = self.centre[index] - (turn @ shift[..., None])[..., 0]
        grid = functional.affine_grid(
            torch.cat((turn, offset[..., None]), 2), [len(rgb), 3, CROP_PX, CROP_PX], False
        )
        soft = functional.avg_pool2d(rgb, 2)
        mask = functional.avg_pool2d(self.outline[index], 2)
        cell = functional.grid_sample(soft, grid, padding_mode="border", align_corners=False)
        alpha = functional.grid_sample(mask, grid, align_corners=False)
        # Faded inward, as in composing: nothing outside the outline shows.
        return cell, (2 * alpha - 1).clamp(0, 1)

    def restained(self, rgb: Tensor, strength: float) -> Tensor:
        """Mix, scale and shift optical densities between channels; see :mod:`.augment`."""
        n = len(rgb)
        density = -rgb.clamp(1 / 255, 1).log()
        mix = torch.eye(3, device=self.device) + self._normal(n, 3, 3) * (0.10 * strength)
        gain = (self._normal(n, 3) * 0.20 + self._normal(n, 1) * 0.15) * strength
        shift = self._normal(n, 3, 1, 1) * (0.04 * strength)
        mixed = torch.einsum("nij,njhw->nihw", mix, density) * gain.exp()[:, :, None, None] + shift
        return (-mixed).exp().clamp(0, 1)

    def _imaged(self, rgb: Tensor) -> Tensor:
        """Focus, loss of colour and noise."""
        n = len(rgb)
        blurred = functional.avg_pool2d(functional.pad(rgb, (1, 1, 1, 1), mode="reflect"), 3, 1)
        share = self._uniform(n, 1, 1, 1) * (self._uniform(n, 1, 1, 1) < 0.4)
        rgb = rgb * (1 - share) + blurred * share
        grey = self._uniform(n, 1, 1, 1, high=0.7) * (self._uniform(n, 1, 1, 1) < 0.25)
        rgb = rgb * (1 - grey) + rgb.mean(1, keepdim=True) * grey
        noise = self._uniform(n, 1, 1, 1, high=0.03)
        return (rgb + self._normal(*rgb.shape) * noise).clamp(0, 1)

    def _uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        random = torch.rand(shape, generator=self.random, device=self.device)
        return random * (high - low) + low

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random, device=self.device)


def _padded(rgb: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    """(H, W, C) uint8 → (C, 144, 144) float, 0 to 1, white or empty around."""
    side = rgb.shape[0]
    fill = 0 if rgb.shape[2] == 1 else 255
    canvas = np.full((SOURCE_PX, SOURCE_PX, rgb.shape[2]), fill, np.uint8)
    start = (SOURCE_PX - side) // 2
    canvas[start : start + side, start : start + side] = rgb
    return torch.from_numpy(canvas).permute(2, 0, 1).float() / 255


def _centre(outline: Tensor) -> Tensor:
    """Centre (x, y) of the outline's box, −1 to 1 over the source image."""
    rows, columns = (outline > 0.5).nonzero(as_tuple=True)
    if not len(rows):
        return torch.zeros(2)
    middle = torch.stack((columns.min() + columns.max() + 1, rows.min() + rows.max() + 1)) / 2
    return middle / SOURCE_PX * 2 - 1


def _backgrounds(rng: np.random.Generator) -> Tensor:
    """(256, 3, 64, 64) fields of red cells as transmittance, 0 to 1."""
    fields = [
        red_cell_field(rng, (CROP_PX, CROP_PX), float(rng.uniform(0, 1.3)), (255, 255, 255))
        for _ in range(_BACKGROUNDS)
    ]
    return torch.from_numpy(np.stack(fields)).permute(0, 3, 1, 2).float() / 255
