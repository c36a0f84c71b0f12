import numpy as np
import pytest
import torch

from trainer import transforms
from trainer.randomness import Draw, epoch_order, generator
from trainer.recipe import Augmentation

NOTHING = Augmentation(flip=False, rotate_degrees=0, zoom_max=1, lighting=0)


def noise(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def varied(image: torch.Tensor, options: Augmentation, item: int = 0) -> torch.Tensor:
    return transforms.augmented(image, 32, options, generator(Draw.AUGMENTATION, 0, 0, 0, item))


def test_validation_shows_the_middle_square() -> None:
    image = noise(32, 48)
    assert torch.equal(transforms.validation(image, 32), image[:, :, 8:40])


def test_the_same_address_gives_the_same_variation_and_another_gives_another() -> None:
    image, options = noise(40, 52), Augmentation()
    assert torch.equal(varied(image, options), varied(image, options))
    assert not torch.equal(varied(image, options, item=0), varied(image, options, item=1))


def test_without_options_only_the_place_of_the_crop_varies() -> None:
    image = noise(32, 48)
    crops = [image[:, :, left : left + 32] for left in range(17)]
    seen = [varied(image, NOTHING, item) for item in range(30)]
    assert all(any(torch.equal(one, crop) for crop in crops) for one in seen)
    assert len({one.numpy().tobytes() for one in seen}) > 5


def test_one_image_in_two_is_mirrored() -> None:
    image = noise(32, 32)
    flips = [
        torch.equal(varied(image, Augmentation(rotate_degrees=0, zoom_max=1, lighting=0), item), image.flip(-1))
        for item in range(400)
    ]
    assert 150 < sum(flips) < 250


def test_three_images_in_four_are_turned_and_their_corners_are_reflections_not_black() -> None:
    image = torch.full((3, 32, 32), 200, dtype=torch.uint8)
    image[:, :, 16:] = 100
    turned = [
        varied(image, Augmentation(flip=False, rotate_degrees=10, zoom_max=1, lighting=0), item) for item in range(400)
    ]
    assert 260 < sum(not torch.equal(one, image) for one in turned) < 340
    assert min(int(one.min()) for one in turned) >= 99


def test_lighting_stays_within_range_and_adds_brightness() -> None:
    image = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    means = [
        float(varied(image, Augmentation(flip=False, rotate_degrees=0, zoom_max=1, lighting=0.1), item)[0, 0, 0])
        for item in range(200)
    ]
    assert 128 - 26 <= min(means) < 110
    assert 146 < max(means) <= 128 + 26


def test_normalised_pixels_have_the_sets_mean_at_zero() -> None:
    images = torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)
    normalised = transforms.normalised(images, mean=(0.2, 0.1, 0.2), std=(0.5, 0.1, 0.5))
    assert normalised.dtype == torch.float32
    assert torch.allclose(normalised[:, 0], torch.tensor(0.0), atol=1e-6)
    assert torch.allclose(normalised[:, 1], torch.tensor(1.0), atol=1e-5)
    assert int(images.max()) == 51


def test_an_epochs_order_is_a_function_of_seed_stage_and_epoch() -> None:
    order = epoch_order(100, seed=1, stage=0, epoch=2)
    np.random.default_rng(7).random()
    torch.manual_seed(7)
    assert epoch_order(100, seed=1, stage=0, epoch=2) == order
    assert sorted(order) == list(range(100))
    assert len({tuple(epoch_order(100, *place)) for place in ((1, 0, 2), (2, 0, 2), (1, 1, 2), (1, 0, 1))}) == 4


@pytest.mark.parametrize("short", [(1, 2, 3), (1, 2)])
def test_an_address_is_not_confused_with_one_of_another_kind(short: tuple[int, ...]) -> None:
    assert generator(Draw.ORDER, *short).random() != generator(Draw.AUGMENTATION, *short).random()
