"""All that a training step changes: the weights, the optimizer, their average, fp16's scaler and the smoothed loss."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainer import optimizer
from trainer.checkpoint import below, under
from trainer.distributed import Team
from trainer.models import Network
from trainer.pace import Pace
from trainer.stage import Stage

SMOOTHING = 0.98  # fast.ai 0.7's: the training loss shown is an average over about the last fifty steps


class Trainee:
    """The network, or its head alone, with what a stage trains it by. `rates` is as in a stage: highest rates."""

    def __init__(
        self,
        network: Network,
        stage: Stage,
        rates: float | tuple[float, ...],
        pace: Pace,
        team: Team,
    ) -> None:
        self.network = network
        self.head_only = network.frozen == network.group_count - 1
        self.model: nn.Module = network.head if self.head_only else network.module
        self.pace = pace
        self.team = team
        self.device = device = team.device
        self.learner = team.learner(self.model)  # what a training step calls
        self.optimizer = optimizer.build(network, stage, rates)
        self.scaler = torch.amp.GradScaler(device.type, enabled=pace.precision == "fp16")
        self.average = torch.zeros((), device=device)
        self._clip = stage.clip
        self._ema: AveragedModel | None = None
        if stage.ema:
            average = get_ema_multi_avg_fn(stage.ema)  # type: ignore[no-untyped-call]
            self._ema = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)

    @property
    def kept(self) -> nn.Module:
        """What is evaluated and kept: the average of the weights where the stage asks for one."""
        return self._ema.module if self._ema else self.model

    def learn(self, loss: Tensor, share: float) -> None:
        """Add this share of the loss's gradient, and the loss to the average."""
        self.scaler.scale(loss * share if share < 1 else loss).backward()  # type: ignore[no-untyped-call]
        self.average.lerp_(loss.detach().float(), 1 - SMOOTHING)

    def step(self, rate_share: float) -> None:
        """Change the weights by the gradients, at this share of the highest rates."""
        optimizer.set_rates(self.optimizer, rate_share)
        if self._clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self._ema:
            self._ema.update_parameters(self.model)
            for average, counter in zip(self._ema.module.buffers(), self.model.buffers(), strict=True):
                if not counter.is_floating_point():
                    average.copy_(counter)  # BatchNorm's count of batches: an average of it would be cut off

    def kept_weights(self) -> dict[str, Tensor]:
        """Every tensor of the network as it is kept."""
        kept = self.kept.state_dict()
        return self.network.module.state_dict() | (under("head.", kept) if self.head_only else kept)

    def take_average(self) -> None:
        """At a stage's end: the network goes on from the average."""
        if self._ema:
            self.model.load_state_dict(self._ema.module.state_dict())

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside the network."""
        kept = {"average": self.average}
        for index, values in self.optimizer.state_dict()["state"].items():
            kept |= under(f"optimizer/{index}/", {key: value for key, value in values.items() if value is not None})
        if self._ema:
            kept |= under("ema/", self._ema.state_dict())
        return kept

    def restore(self, tensors: dict[str, Tensor], scaler: dict[str, float]) -> None:
        """Go on as the one did that left these."""
        self.average.copy_(tensors["average"])
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in below("optimizer/", tensors).items():
            index, _, key = name.partition("/")
            like = parameters[int(index)]
            # A fused step goes through memory: what belongs to a parameter must lie in its layout (channels_last).
            kept = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
            state.setdefault(int(index), {})[key] = kept
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        if self._ema:
            self._ema.load_state_dict(below("ema/", tensors))
        if scaler:
            self.scaler.load_state_dict(scaler)
