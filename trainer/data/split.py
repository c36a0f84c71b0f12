"""A stratified split: every class gives the same share of its images to the validation part."""

from sklearn.model_selection import train_test_split

from trainer.data import Sample, Samples
from trainer.errors import DataRefused
from trainer.recipe import DataOptions


def stratified(
    classes: tuple[str, ...], every: tuple[Sample, ...], options: DataOptions, ignored: tuple[str, ...] = ()
) -> Samples:
    """The samples in two parts, the same for the same `split_seed`, each in its original order. Raises DataRefused."""
    labels = [sample.label for sample in every]
    try:
        train, valid = train_test_split(
            range(len(every)), test_size=options.valid_fraction, random_state=options.split_seed, stratify=labels
        )
    except ValueError as error:  # scikit-learn's sentence names the number that is too small
        next_step = "Add images, change data.valid_fraction, or split into train/ and valid/ yourself"
        raise DataRefused(
            f"{len(every)} images in {len(classes)} classes cannot be split: {error}".rstrip("."), next_step
        ) from error
    return Samples(
        classes=classes,
        train=tuple(every[index] for index in sorted(train)),
        valid=tuple(every[index] for index in sorted(valid)),
        ignored=ignored,
    )
