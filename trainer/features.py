"""Precomputed activations: what the frozen part of the network makes of each image, computed once and kept.

fast.ai 0.7's `precompute`, but named by a digest of everything that decides them: its own cache knew only the network
and the size, and went stale silently when anything else changed.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor

import trainer
from trainer import pace as paces
from trainer import report, transforms
from trainer.data.batches import Batches
from trainer.data.pixels import Pixels
from trainer.decode import DECODER
from trainer.models import Network
from trainer.pace import Pace
from trainer.plan import Precompute
from trainer.run import Run
from trainer.stage import Stage
from trainer.state import State
from trainer.store import Shards, key

PER_SHARD = 256
BATCH = 32  # fits a small GPU at any usual size; larger ones gain a few percent
SAY_EVERY_S = 10.0
LIBRARIES = {
    "crop": transforms.VALIDATION,
    "decoder": DECODER,
    "trainer": trainer.__version__,
    "torch": torch.__version__,
    "torchvision": torchvision.__version__,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """A part's activations, (image, width) float32, mapped from the shards' files."""

    targets: Tensor
    shards: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([self.shards[index // PER_SHARD][index % PER_SHARD] for index in indices])

    def batches(self, parts: Sequence[Sequence[int]]) -> Batches:
        # A row is a copy of some kilobytes: threads would cost more than they save.
        return Batches(parts, self.targets, self.rows, workers=0)


def precompute(run: Run, state: State, step: Precompute) -> State:
    """The state after the activations of the training and the validation part are on disk."""
    run.network.freeze_to(step.stage.freeze_to, step.stage.freeze_norm)
    for part in ("train", "valid"):
        of(run, state, step.stage_index, part)
    return state


def of(run: Run, state: State, stage_index: int, part: str) -> Features:
    """A part's activations for the stage, after what is missing of them has been computed. Raises Stopped, DiskFull."""
    stage, pace = run.recipe.stages[stage_index], state.paces[stage_index]
    pixels = run.train if part == "train" else run.valid
    normalisation = (run.recipe.data.mean, run.recipe.data.std)
    place = folder(run.cache, pixels, run.decoded_px, run.network, stage, pace, normalisation)
    shards = Shards(place, len(pixels), PER_SHARD)
    found = [_whole(shards, shard, run.network.feature_width) for shard in range(len(shards.ranges))]
    missing = [shard for shard, rows in enumerate(found) if rows is None]
    if missing:
        run.team.meet()  # all know what is missing before anyone adds to it
        body = frozen_body(run, stage, pace)
        progress = _Progress(sum(len(shards.ranges[shard]) for shard in missing))
        for shard in run.team.share(missing):
            indices = shards.ranges[shard]
            parts = [indices[start : start + BATCH] for start in range(0, len(indices), BATCH)]
            rows = []
            for images, _ in run.batches(pixels, parts, lambda image, _: transforms.validation(image, stage.size_px)):
                with torch.inference_mode():
                    rows.append(body(run.normalise(images)).cpu())
                progress.more(len(images))
                # What the step leaves is on the disk already; several processes have unequal numbers of batches here.
                run.keeper.after_step(lambda: state) if run.team.size == 1 else run.keeper.beat()
            shards.write(shard, {"features": torch.cat(rows)}, {})
        run.team.meet()
        found = [_whole(shards, shard, run.network.feature_width) for shard in range(len(shards.ranges))]
        error = _error(run, pixels, stage, body)
        report.activations(run.rundir, stage.name, part, progress.count, progress.seconds, str(pace), error)
    return Features(targets=pixels.targets, shards=tuple(rows for rows in found if rows is not None))


def frozen_body(run: Run, stage: Stage, pace: Pace) -> Callable[[Tensor], Tensor]:
    """Normalised images (batch, channel, height, width) to float32 features (batch, width), without gradients."""
    run.network.module.eval()
    forward = paces.body(run.network, pace)

    @torch.no_grad()
    def body(images: Tensor) -> Tensor:
        with pace.on(run.torch_device):
            return forward(pace.laid_out(images)).float()

    return body


def folder(
    cache: Path,
    part: Pixels,
    decoded_px: int,
    network: Network,
    stage: Stage,
    pace: Pace,
    normalisation: Sequence[Sequence[float]],
    libraries: Mapping[str, str] = LIBRARIES,
) -> Path:
    """Where the activations lie: the name is a digest of all that decides their values.

    `decoded_px` is the shorter side of the images of `part`, `normalisation` the mean and deviation of each channel.
    """
    name = key(
        images=part.digests,
        decoded_px=decoded_px,
        size_px=stage.size_px,
        normalisation=normalisation,
        arch=network.arch,
        cut=network.head_kind,
        weights=body_sha256(network),
        precision=pace.precision,
        channels_last=pace.channels_last,
        folded=pace.folded,
        libraries=dict(libraries),
    )
    return cache / "activations" / name


def body_sha256(network: Network) -> str:
    """The digest of every tensor of the network but its head's."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.module.state_dict().items()):
        if not name.startswith("head."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _whole(shards: Shards, shard: int, width: int) -> Tensor | None:
    """The shard's rows, if they are what they should be: a cache is only a file, which anyone may have written."""
    found = shards.read(shard)
    rows = found[0].get("features") if found else None
    if rows is None or rows.shape != (len(shards.ranges[shard]), width) or rows.dtype != torch.float32:
        return None
    return rows


def _error(run: Run, pixels: Pixels, stage: Stage, body: Callable[[Tensor], Tensor]) -> float:
    """How far the activations of a few images are from plain fp32's: the norm of the difference, over the norm."""
    images = torch.stack([transforms.validation(pixels[index], stage.size_px) for index in range(min(8, len(pixels)))])
    with torch.inference_mode():
        normalised = run.normalise(images)
        plain = run.network.features(normalised).float()
        return float((body(normalised) - plain).norm() / plain.norm().clamp(min=1e-12))


class _Progress:
    """Says now and then how far it is and how long it still takes."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._done = 0
        self._started = self._said = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def more(self, images: int) -> None:
        self._done += images
        if time.monotonic() - self._said > SAY_EVERY_S:
            self._said = time.monotonic()
            per_s = self._done / self.seconds
            left_s = (self.count - self._done) / per_s
            report.say(f"{self._done:,} of {self.count:,} activations, {per_s:.0f} img/s, {left_s:.0f} s left")
