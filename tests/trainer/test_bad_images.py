"""Images as they come: odd, damaged or hostile ones give the right pixels or a reason, and fill no memory."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer import data
from trainer.data.pixels import load
from trainer.decode import UnreadableImage, decode
from trainer.errors import DataRefused
from trainer.recipe import DataOptions


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG file from its raw rows, each with its filter byte (Pillow writes no colour of 16 bits)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def reason(path: Path) -> str:
    with pytest.raises(UnreadableImage) as unreadable:
        decode(path)
    assert unreadable.value.lasting
    return unreadable.value.reason


def one_each(root: Path, image: Image.Image, name: str) -> None:
    """The image once in each of two classes of both parts."""
    for folder in (root / part / label for part in ("train", "valid") for label in ("a", "b")):
        folder.mkdir(parents=True)
        image.save(folder / name)


def test_sixteen_bits_of_colour_are_scaled(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    path.write_bytes(png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 0, 0x4000, 0xFFFF, 0x80FF, 1, 0x1234)))
    assert decode(path)[:, 0].T.tolist() == [[0, 0x40, 0xFF], [0x80, 0, 0x12]]


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 4), colour) for colour in ("red", "blue", "green")]
    for suffix in ("gif", "webp", "png"):
        path = tmp_path / f"moving.{suffix}"
        frames[0].save(
            path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == "webp" else {})
        )
        assert decode(path)[:, 0, 0].tolist() == [255, 0, 0]


def test_a_phones_photo_with_a_second_one_inside_is_the_first(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / "photo.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert decode(tmp_path / "photo.jpg").min() == 255


def test_transparency_is_dropped_in_palettes_too(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4), (10, 200, 30)).convert("P")
    image.save(tmp_path / "clear.png", transparency=bytes([0] * 256))
    assert tuple(decode(tmp_path / "clear.png")[:, 0, 0].tolist()) == image.convert("RGB").getpixel((0, 0))


def test_one_pixel_becomes_a_square_of_its_colour(tmp_path: Path) -> None:
    one_each(tmp_path, Image.new("RGB", (1, 1), (1, 2, 3)), "dot.png")
    pixels, unreadable = load(data.find(str(tmp_path), DataOptions()).train, 2, False, 16, tmp_path, 1, lambda: None)
    assert not unreadable
    assert pixels[1].shape == (3, 16, 16)
    assert pixels[1].flatten(1).float().mean(1).tolist() == [1, 2, 3]


def test_a_strip_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    for size in ((20_000, 8), (8, 20_000), (33, 1)):
        Image.new("RGB", size).save(tmp_path / "strip.png")
        assert reason(tmp_path / "strip.png") == f"{size[0]}×{size[1]} px: one side is over 32 times the other"


def test_a_panorama_of_20000_pixels_is_read(tmp_path: Path) -> None:
    Image.new("L", (20_000, 640), 7).save(tmp_path / "panorama.png")
    assert decode(tmp_path / "panorama.png").shape == (3, 640, 20_000)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 100_000, 1 << 30])
def test_a_file_that_declares_far_more_than_it_holds_is_refused(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png(side, side, 8, 2, bytes(100)))
    assert "pixels" in reason(tmp_path / "bomb.png")


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(%pipe%touch ran) (w) file\nshowpage\n",
        b"GIF89a" + bytes(7) + b";",
        b"II*\0" + bytes(100),
    ],
)
def test_another_kind_of_file_is_not_opened_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(content)
    assert reason(tmp_path / "photo.jpg").startswith("not an image of a known kind")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp"])
def test_a_truncated_file_is_left_out_wherever_it_was_cut(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
    content = (tmp_path / f"whole.{suffix}").read_bytes()
    for share in (0.1, 0.5, 0.9):
        (tmp_path / f"cut.{suffix}").write_bytes(content[: int(share * len(content))])
        assert reason(tmp_path / f"cut.{suffix}")


@pytest.mark.parametrize("name", ["ünïcödé 图像 🐈.png", "é" * 125 + "x.png", "a" * 251 + ".png", " - .png"])
def test_any_name_of_255_bytes_is_a_name(tmp_path: Path, name: str) -> None:
    assert len(os.fsencode(name)) <= 255
    one_each(tmp_path, Image.new("RGB", (8, 8)), name)
    found = data.find(str(tmp_path), DataOptions())
    assert found.train[0].name == f"train/a/{name}"
    assert found.train[0].read().shape == (3, 8, 8)


def test_a_name_that_is_no_unicode_is_written_out(tmp_path: Path) -> None:
    one_each(tmp_path, Image.new("RGB", (8, 8)), os.fsdecode(b"\xff\xfe.png"))
    pixels, unreadable = load(data.find(str(tmp_path), DataOptions()).train, 2, False, 8, tmp_path, 1, lambda: None)
    assert not unreadable
    assert pixels.names == ["train/a/\\xff\\xfe.png", "train/b/\\xff\\xfe.png"]


def test_one_image_of_each_class_is_enough_where_the_parts_are_given(tmp_path: Path) -> None:
    one_each(tmp_path, Image.new("RGB", (8, 8)), "one.png")
    assert len(data.find(str(tmp_path), DataOptions()).train) == 2
    with pytest.raises(DataRefused, match="'a' has 1 images and cannot be split"):
        data.find(str(tmp_path / "train"), DataOptions())
