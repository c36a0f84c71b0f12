"""One function: an image file to pixels. Every image that is trained on or predicted passes through here."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


class UnreadableImage(Exception):
    """An image file whose pixels cannot be had, and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.reason = reason


def decode(path: Path) -> Tensor:
    """The upright image as uint8 (channel, height, width), RGB. Raises UnreadableImage.

    A truncated file is refused, not filled with grey. Transparency is dropped; grayscale and CMYK become RGB.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)  # cameras store a turned photo and a note which way is up
            if upright.mode.startswith("I;16"):
                # Pillow's own conversion clips 16-bit samples at 255 instead of scaling them.
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            pixels = np.array(upright.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise UnreadableImage(path, f"{error}" or type(error).__name__) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
