"""Parts of one set of images, drawn from `data.split_seed` alone and each in the set's own order.

Where every image has one label the split is stratified: each class gives the same share of its images. Where they have
several it is a plain draw, for no share can be kept of every combination.

scikit-learn is imported where it is used: it takes a second or two, and a set that is split already needs none of it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from trainer.data import Samples
from trainer.errors import DataRefused
from trainer.recipe import DataOptions


def split(samples: Samples, options: DataOptions) -> Samples:
    """The samples, all of them in `train`, with the other parts taken out of it: first test, then validation.

    So the test part is the same for every fold. Raises DataRefused.
    """
    every, test = samples.train, samples.test
    rest: Sequence[int] = range(len(every))
    if options.test_fraction:
        if test:
            raise DataRefused("This set has a test part of its own", "Leave out data.test_fraction")
        rest, tested = _divided(samples, rest, options.test_fraction, options.split_seed)
        test = tuple(every[index] for index in tested)
    if options.folds:
        train, valid = _fold(samples, rest, options)
    else:
        train, valid = _divided(samples, rest, options.valid_fraction / (1 - options.test_fraction), options.split_seed)
    return replace(
        samples,
        train=tuple(every[index] for index in train),
        valid=tuple(every[index] for index in valid),
        test=test,
    )


def _divided(samples: Samples, of: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    from sklearn.model_selection import train_test_split

    labels = None if samples.multi_label else _enough(samples, of, 2)
    try:
        rest, taken = train_test_split(list(of), test_size=fraction, random_state=seed, stratify=labels)
    except ValueError as error:  # scikit-learn's sentence names the number that is too small
        next_step = "Add images, change data.valid_fraction, or split into train/ and valid/ yourself"
        raise DataRefused(
            f"{len(of)} images in {len(samples.classes)} classes cannot be split: {error}".rstrip("."), next_step
        ) from error
    return sorted(rest), sorted(taken)


def _fold(samples: Samples, of: Sequence[int], options: DataOptions) -> tuple[list[int], list[int]]:
    from sklearn.model_selection import KFold, StratifiedKFold

    if len(of) < options.folds:
        raise DataRefused(f"{len(of)} images cannot be split into {options.folds} folds", "Lower data.folds")
    labels = None if samples.multi_label else _enough(samples, of, options.folds)
    kind = KFold if samples.multi_label else StratifiedKFold
    folds = kind(options.folds, shuffle=True, random_state=options.split_seed).split(of, labels)
    train, valid = list(folds)[options.fold]
    return [of[index] for index in train], [of[index] for index in valid]


def _enough(samples: Samples, of: Sequence[int], least: int) -> list[int]:
    """The images' labels, where each class has so many of them."""
    labels = [samples.train[index].labels[0] for index in of]
    count = Counter(labels)
    if few := [name for label, name in enumerate(samples.classes) if count[label] < least]:
        what = f"{few[0]!r} has {count[samples.classes.index(few[0])]} images and cannot be split into {least} parts"
        raise DataRefused(what, "Add images of it, or split into train/ and valid/ yourself")
    return labels
