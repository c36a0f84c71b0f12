"""What happens to an image between cache and network: on uint8, but for the last step, which runs on the device.

The variations and their probabilities are those of fast.ai 0.7's `transforms_side_on` with `max_zoom` (its
transforms.py); the numbers come from a generator that belongs to (seed, stage, epoch, image), not from a global stream.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from trainer.augmentation import Augmentation

VALIDATION = "shorter side, middle square"  # raise it when `validation` makes something else of the same image
VARIED = 0.75  # fast.ai 0.7 zooms and rotates three images in four


def validation(image: Tensor, size_px: int) -> Tensor:
    """The middle square at `size_px`: uint8 (channel, height, width) to (channel, size_px, size_px)."""
    cropped: Tensor = F.center_crop(shorter_side(image, size_px), [size_px])
    return cropped


def augmented(image: Tensor, size_px: int, options: Augmentation, random: np.random.Generator) -> Tensor:
    """A varied square: zoomed, cropped at random, turned, lit and mirrored: uint8 (channel, size_px, size_px).

    Every image draws the same eight numbers, so that one option's change leaves the others' draws as they were.
    """
    zoom_draw, top_draw, left_draw, turn_draw, brightness, contrast, mirror_draw, quarter_draw = random.random(8)
    zoom = 1 + (options.zoom_max - 1) * zoom_draw / VARIED if zoom_draw < VARIED else 1.0
    degrees = options.rotate_degrees * (2 * turn_draw / VARIED - 1) if turn_draw < VARIED else 0.0

    image = shorter_side(image, round(size_px * zoom))
    height, width = image.shape[-2:]
    top, left = int(top_draw * (height - size_px + 1)), int(left_draw * (width - size_px + 1))
    image = _turned_crop(image, top, left, size_px, degrees)
    if options.lighting:
        image = _lit(image, options.lighting * (2 * brightness - 1), options.lighting * (2 * contrast - 1))
    if options.top_down:  # fast.ai 0.7's RandomDihedral: all eight equally often
        image = torch.rot90(image, int(4 * quarter_draw), dims=(1, 2))
    if (options.flip or options.top_down) and mirror_draw < 0.5:
        image = F.horizontal_flip(image)
    return image


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (batch, channel, height, width) to float32 with each channel's mean at 0 and its deviation at 1."""
    scaled: Tensor = F.normalize(F.to_dtype(images, torch.float32, scale=True), list(mean), list(std), inplace=True)
    return scaled


def shorter_side(image: Tensor, side_px: int) -> Tensor:
    """The image scaled to a shorter side of `side_px`, smoothed when it shrinks: uint8 (channel, height, width)."""
    if min(image.shape[-2:]) == side_px:
        return image
    resized: Tensor = F.resize(image, [side_px], antialias=True)
    return resized


def _turned_crop(image: Tensor, top: int, left: int, size_px: int, degrees: float) -> Tensor:
    """The square at (top, left), turned about its middle; beyond the image's edge lies its reflection."""
    if not degrees:
        cropped: Tensor = F.crop(image, top, left, size_px, size_px)
        return cropped
    radians = math.radians(abs(degrees))
    # A square turned by this angle reaches this far beyond its own side.
    margin = math.ceil(size_px * (math.cos(radians) + math.sin(radians) - 1) / 2)
    window = size_px + 2 * margin
    around = F.crop(F.pad(image, [margin], padding_mode="reflect"), top, left, window, window)
    turned: Tensor = F.center_crop(F.rotate(around, degrees, InterpolationMode.BILINEAR), [size_px])
    return turned


def _lit(image: Tensor, brightness: float, contrast: float) -> Tensor:
    """fast.ai 0.7's lighting: contrast about the mean, brightness added (torchvision's ColorJitter multiplies it)."""
    gain = 1 + contrast if contrast >= 0 else 1 / (1 - contrast)
    pixels = image.float()
    mean = pixels.mean()
    return ((pixels - mean) * gain + mean + 255 * brightness).round_().clamp_(0, 255).to(torch.uint8)
