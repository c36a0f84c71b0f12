from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.decode import UnreadableImage, decode

RED, BLUE = (255, 0, 0), (0, 0, 255)


def two_halves() -> Image.Image:
    """Red left half, blue right half, 8 wide and 4 high."""
    image = Image.new("RGB", (8, 4), RED)
    image.paste(BLUE, (4, 0, 8, 4))
    return image


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "jpg"])
def test_an_image_becomes_uint8_channels_first(tmp_path: Path, suffix: str) -> None:
    two_halves().save(tmp_path / f"photo.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    pixels = decode(tmp_path / f"photo.{suffix}")
    assert pixels.shape == (3, 4, 8)
    assert pixels.dtype == torch.uint8
    assert pixels[0, 0, 0] > 240 and pixels[2, 0, 7] > 240


def test_a_turned_camera_photo_is_set_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right: turn it clockwise to show it
    two_halves().save(tmp_path / "turned.png", exif=exif)
    pixels = decode(tmp_path / "turned.png")
    assert pixels.shape == (3, 8, 4)
    assert pixels[:, 0, 0].tolist() == list(RED)
    assert pixels[:, 7, 0].tolist() == list(BLUE)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_any_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("photo.jpg" if mode == "CMYK" else "photo.png")
    two_halves().convert("L" if mode == "LA" else mode).convert(mode).save(path)
    assert decode(path).shape == (3, 4, 8)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0x4000, 0xFFFF]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert decode(tmp_path / "deep.png")[0].tolist() == [[0, 0x40, 0xFF]]


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0 broken", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_unreadable(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(UnreadableImage):
        decode(tmp_path / "photo.jpg")


def test_a_truncated_photo_is_unreadable_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.effect_noise((64, 64), 80).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UnreadableImage) as unreadable:
        decode(path)
    assert "truncated" in unreadable.value.reason
