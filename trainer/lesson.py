"""How a stage shows images and computes a loss: the same for its training and for its learning-rate finder."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from trainer import engine, features, losses, randomness, transforms
from trainer.data import batches
from trainer.data.batches import Batches
from trainer.engine import Answers
from trainer.features import Features
from trainer.pace import Pace
from trainer.plan import Find, Train
from trainer.randomness import Draw
from trainer.run import Run
from trainer.stage import Stage
from trainer.state import State
from trainer.trainee import Trainee


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A stage's images, or what was precomputed of them, and its loss, for one trainee."""

    run: Run
    stage_index: int
    stage: Stage
    pace: Pace
    trainee: Trainee
    loss: losses.Loss
    body: Callable[[Tensor], Tensor] | None  # the frozen part, where the head alone learns, from images
    train: Features | None  # what it made of the images, where it was precomputed
    valid: Features | None

    def training_batches(self, epoch: int) -> list[list[int]]:
        """The epoch's batches, as indices, in the order of (seed, stage, epoch)."""
        order = randomness.epoch_order(len(self.run.train), self.run.recipe.seed, self.stage_index, epoch)
        return [list(part) for part in batches.parts(order, self.stage.batch_size)]

    def shown(self, epoch: int, parts: list[list[int]]) -> Batches:
        """This process's share of those batches: activations, or uint8 images, augmented where the stage says so."""
        parts = [list(self.run.team.share(part)) for part in parts]
        if self.train is not None:
            return self.train.batches(parts)
        stage, run = self.stage, self.run

        def varied(image: Tensor, index: int) -> Tensor:
            if not stage.augment:
                return transforms.validation(image, stage.size_px)
            address = (run.recipe.seed, self.stage_index, epoch, index, 0)
            random = randomness.generator(Draw.AUGMENTATION, *address)
            return transforms.augmented(image, stage.size_px, run.recipe.augmentation, random)

        return run.batches(run.train, parts, varied)

    def loss_of(self, epoch: int, batch: int, inputs: Tensor, targets: Tensor) -> Tensor:
        """A training batch's mean loss. Dropout and mixup draw from (seed, stage, epoch, batch)."""
        address = (self.run.recipe.seed, self.stage_index, epoch, batch)
        randomness.seed_step(*address, self.run.team.rank)
        if self.stage.mixup:
            images = self.run.normalise(inputs)
            images, targets = losses.mixed(images, targets, len(self.run.classes), self.stage.mixup, address)
            return self.loss(self._of_images(self.trainee.learner, images), targets)
        return self.loss(self._scores(self.trainee.learner, inputs), targets)

    def evaluated(self, part: str, after_batch: Callable[[], None]) -> Answers:
        """The answers on the validation part, or on the training part without augmentation."""
        pixels, kept = (self.run.valid, self.valid) if part == "valid" else (self.run.train, self.train)
        self.run.network.module.eval()
        model = self.trainee.kept.eval()
        shown = kept.batches if kept is not None else self.run.middles(pixels, self.stage.size_px)
        scores, size = partial(self._scores, model), self.stage.batch_size
        return engine.evaluate(scores, shown, len(pixels), size, self.run.team, after_batch)

    def _scores(self, model: nn.Module, inputs: Tensor) -> Tensor:
        if self.train is not None:
            scores: Tensor = model(inputs.to(self.run.torch_device, non_blocking=True))
            return scores
        return self._of_images(model, self.run.normalise(inputs))

    def _of_images(self, model: nn.Module, images: Tensor) -> Tensor:
        """`model` is the head where there is a frozen part before it, else the whole network."""
        if self.body is not None:
            scores: Tensor = model(self.body(images))
            return scores
        with self.pace.on(self.run.torch_device):
            scores = model(self.pace.laid_out(images))
        return scores.float()


def of(run: Run, state: State, step: Train | Find, trainee: Trainee) -> Lesson:
    """The stage's lesson for this trainee, whose network is frozen as the stage says."""
    index, stage = step.stage_index, step.stage
    pace = state.paces[index]
    return Lesson(
        run=run,
        stage_index=index,
        stage=stage,
        pace=pace,
        trainee=trainee,
        loss=losses.training_loss(stage, run.train.targets, len(run.classes), run.torch_device),
        body=features.frozen_body(run, stage, pace) if trainee.head_only and not stage.precompute else None,
        train=features.of(run, state, index, "train") if stage.precompute else None,
        valid=features.of(run, state, index, "valid") if stage.precompute else None,
    )
