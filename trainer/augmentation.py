"""How training images are varied: the `[augmentation]` table of a recipe. `transforms.py` does it. Needs no torch."""

from dataclasses import dataclass

from trainer.knobs import NUMBER, SWITCH, Checked, knob


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation(Checked):
    """How a training image is varied each time it is shown. The defaults suit photographs taken from the side."""

    flip: bool = knob(SWITCH, True, "", "a mirrored photograph is as likely; not so for digits and text")
    top_down: bool = knob(SWITCH, False, "", "all eight turns and mirrorings, as of a picture taken from above")
    rotate_degrees: float = knob(NUMBER, 10.0, "degrees", "fast.ai 0.7: 3 images in 4, either way", least=0, most=45)
    zoom_max: float = knob(
        NUMBER, 1.1, "×", "fast.ai 0.7: 3 images in 4 are enlarged, at most this much", least=1, most=4
    )
    lighting: float = knob(NUMBER, 0.05, "of full range", "fast.ai 0.7: brightness and contrast", least=0, most=0.9)

    def where(self) -> str:
        return "[augmentation]"
