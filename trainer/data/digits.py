"""The built-in set `digits`: 1,797 handwritten digits of 8×8 pixels that scikit-learn carries; nothing is downloaded.

They are the test part of the UCI "Optical Recognition of Handwritten Digits" set (Alpaydin & Kaynak, 1998).
"""

from functools import partial

import torch
from sklearn.datasets import load_digits

from trainer.data import Sample, Samples
from trainer.data.split import stratified
from trainer.recipe import DataOptions

NAME = "digits"


def samples(options: DataOptions) -> Samples:
    """The digits, split as the options say."""
    digits = load_digits()
    shades = torch.from_numpy(digits.images)  # (image, height, width), 17 shades: 0 to 16
    # Three equal channels, so that any network takes them.
    pixels = (shades * 255 / 16).round().to(torch.uint8).unsqueeze(1).expand(-1, 3, -1, -1)
    every = tuple(
        Sample(name=f"{NAME}/{index}", label=int(label), read=partial(pixels.__getitem__, index))
        for index, label in enumerate(digits.target)
    )
    return stratified(tuple(str(name) for name in digits.target_names), every, options)
