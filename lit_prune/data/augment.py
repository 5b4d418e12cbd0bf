"""Augmentations of whole batches, on the device where they lie."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Augmentation", "cropped", "flipped", "rotated"]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images; every image of a batch gets its own.

    Attributes:
        flip: mirror left to right, with probability one half.
        crop: pad by so many pixels and cut a random window of the old size.
        reflect: pad by mirrored images instead of black.
        rotate: turn by up to so many degrees either way.
    """

    flip: bool = False
    crop: int = 0
    rotate: float = 0.0
    reflect: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed ``images`` (N, C, H, W); random numbers are drawn on the CPU."""
        if self.rotate:
            images = rotated(images, self.rotate, generator)
        if self.crop:
            images = cropped(images, self.crop, generator, self.reflect)
        return flipped(images, generator) if self.flip else images


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    mirrored = mirrored.to(images.device, non_blocking=True).view(-1, 1, 1, 1)
    return torch.where(mirrored, images.flip(-1), images)


def cropped(
    images: Tensor, padding: int, generator: torch.Generator, reflect: bool = False
) -> Tensor:
    """Shift each image by up to ``padding`` pixels each way.

    Black comes in at the edges, or the image itself, mirrored at the centre of its border pixels.
    """
    count, channels, height, width = images.shape
    shifts = torch.randint(2 * padding + 1, (2, count, 1), generator=generator)
    top, left = shifts.to(images.device, non_blocking=True)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    if reflect:
        padded = images
        rows, columns = _mirrored(rows - padding, height), _mirrored(columns - padding, width)
    else:
        padded = F.pad(images, (padding,) * 4)
    every = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return padded[every, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _mirrored(places: Tensor, size: int) -> Tensor:
    """Return places from 0 to size - 1 for places that go beyond, by less than ``size``."""
    return (size - 1) - ((size - 1) - places.abs()).abs()


def rotated(images: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Turn each image about its centre by up to ``degrees`` either way, bilinearly."""
    turns = (2 * torch.rand(len(images), generator=generator) - 1) * torch.pi * degrees / 180
    turns = turns.to(images.device, non_blocking=True)
    cos, sin, zero = turns.cos(), turns.sin(), torch.zeros_like(turns)
    # The grid's axes go from -1 to 1, whatever the sides of the image.
    height, width = images.shape[-2:]
    across, down = -sin * height / width, sin * width / height
    rows = torch.stack([cos, across, zero, down, cos, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    turned = F.grid_sample(images.float(), grid, align_corners=False)
    return turned if images.is_floating_point() else turned.round_().to(images.dtype)
