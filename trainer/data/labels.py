"""Has an image one label, or any number of them? The recipe says so, or the labels do."""

from trainer.recipe import DataOptions


def multi_label(options: DataOptions, several: bool, because: str) -> tuple[bool, str]:
    """Whether an image may have any number of labels, and what says so; `several` is what the labels look like."""
    if options.labels == "infer":
        return several, f"inferred: {because}"
    return options.labels == "multi", "stated in the recipe"
