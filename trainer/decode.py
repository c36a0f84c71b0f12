"""One function: an image file to pixels. Every image that is trained on or predicted passes through here."""

import hashlib
import io
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

DECODER = f"Pillow {PIL.__version__}"
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
# Told by content, not by name; of Pillow's formats these alone: its PostScript reader, for one, starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
# A square's worth of a longer strip is a sliver of it, and at 224 px one of 20,000 × 1 px would take 3 GB.
LONGEST_RATIO = 32
# Pillow's limit against files that declare far more than they hold: about 1 GB while one is decoded. It warns itself.
MOST_PIXELS = 89_478_485


class UnreadableImage(Exception):
    """An image file whose pixels cannot be had, and why."""

    def __init__(self, path: Path, reason: str, *, lasting: bool = True) -> None:
        super().__init__(path, reason)
        self.reason = reason
        self.lasting = lasting  # it follows from the file's bytes; False: another try may go better


def decode(path: Path) -> Tensor:
    """The upright image as uint8 (channel, height, width), RGB. Raises UnreadableImage.

    A truncated file is refused, not filled with grey. Transparency is dropped; grayscale and CMYK become RGB, 16 bits
    become 8; of an animation the first frame is taken. Strips of more than 32 : 1 and images of more than 89 megapixels
    are refused.
    """
    content = io.BytesIO(_content(path))
    try:
        with Image.open(content, formats=FORMATS) as image:
            width, height = image.size
            if not 0 < max(width, height) <= LONGEST_RATIO * min(width, height):
                raise UnreadableImage(path, f"{width}×{height} px: one side is over {LONGEST_RATIO} times the other")
            if width * height > MOST_PIXELS:
                raise UnreadableImage(path, f"{width}×{height} px: more than {MOST_PIXELS:,} pixels")
            ImageOps.exif_transpose(image, in_place=True)  # cameras store a turned photo and a note which way is up
            pixels = np.array(_eight_bits(image).convert("RGB"))
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(path, f"not an image of a known kind ({', '.join(FORMATS)})") from error
    except MemoryError as error:
        raise UnreadableImage(path, "too large for the memory that is left", lasting=False) from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise UnreadableImage(path, f"{error}" or type(error).__name__) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def digest(path: Path) -> str:
    """The SHA-256 of the file's bytes, in hexadecimal. Raises UnreadableImage."""
    return hashlib.sha256(_content(path)).hexdigest()


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit samples at 255 instead of scaling them.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P":
        return image.convert("RGBA")  # straight to RGB, Pillow warns where the palette has transparency
    return image


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(path, error.strerror or "cannot be read", lasting=False) from error
