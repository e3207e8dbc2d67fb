"""Losses of the cell finder."""

from __future__ import annotations

import torch
from torch import Tensor

from models.training.box_losses import generalised_iou
from models.training.smear_detector import decode_boxes


def peak_loss(logit: Tensor, heat: Tensor) -> Tensor:
    """Focal loss of peaks (Zhou et al. 2019, "Objects as points", eq. 1; α 2, β 4).

    Parameters
    ----------
    logit, heat : (N, 1, h, w)
        `heat` is 1 at the centre of a cell and falls off around it.
    """
    probability = torch.sigmoid(logit.float()).clamp(1e-5, 1 - 1e-5)
    centre = heat >= 0.999
    at_centre = torch.log(probability) * (1 - probability) ** 2
    elsewhere = torch.log(1 - probability) * probability**2 * (1 - heat) ** 4
    total = torch.where(centre, at_centre, elsewhere).sum()
    return -total / centre.sum().clamp(min=1)


def box_loss(log_distance: Tensor, box: Tensor, inside: Tensor) -> Tensor:
    """1 − generalised IoU (Rezatofighi et al. 2019) at the places that lie in a cell.

    Parameters
    ----------
    log_distance, box : (N, 4, h, w)
    inside : (N, h, w) bool
    """
    found = decode_boxes(log_distance).movedim(1, -1)[inside]
    truth = box.movedim(1, -1)[inside]
    if not len(found):
        return log_distance.sum() * 0.0
    return (1 - generalised_iou(found, truth)).mean()
