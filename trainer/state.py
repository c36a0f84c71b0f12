"""How far a run has come: one frozen value. The network's weights, which change in place, belong to it."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor

from trainer.history import Cycle, Epoch
from trainer.pace import Pace


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Between two batches, a run is this and its network's weights; a checkpoint holds both."""

    step: int = 0  # of the plan: the one to go on with
    epoch: int = 0  # whole epochs of that step, trained and evaluated
    batch: int = 0  # of the epoch under way: the next one (a finder's next batch, a prediction's next pass)
    rates: dict[int, float] = field(default_factory=dict)  # found for a stage
    paces: dict[int, Pace] = field(default_factory=dict)  # decided for a stage
    snapshots: tuple[str, ...] = ()  # files in checkpoints/ that the end predicts with too
    cycles: tuple[Cycle, ...] = ()  # of the stage under way
    # What chose something by its score on the validation part: such a score is not also a final one.
    selected_by: tuple[str, ...] = ()
    scaler: dict[str, float] = field(default_factory=dict)  # of fp16's loss
    step_tensors: dict[str, Tensor] = field(default_factory=dict)  # of the step under way: optimizer, averages
    history: tuple[Epoch, ...] = ()  # kept in metrics.jsonl

    def values(self) -> dict[str, Any]:
        """All but tensors and history, as JSON."""
        kept = asdict(self)
        del kept["step_tensors"], kept["history"]
        return kept

    @classmethod
    def of(cls, values: dict[str, Any], step_tensors: dict[str, Tensor], history: tuple[Epoch, ...]) -> "State":
        """The state of those values. Raises TypeError, ValueError, KeyError where they are not what `values` gave."""
        known = {spec.name for spec in fields(cls)} - {"step_tensors", "history"}
        if set(values) != known:
            raise ValueError(f"it holds {', '.join(sorted(set(values) ^ known))} otherwise than this trainer")
        return cls(
            **values
            | {
                "rates": {int(stage): float(rate) for stage, rate in values["rates"].items()},
                "paces": {int(stage): Pace(**pace) for stage, pace in values["paces"].items()},
                "snapshots": tuple(str(name) for name in values["snapshots"]),
                "cycles": tuple(Cycle(**cycle) for cycle in values["cycles"]),
                "selected_by": tuple(values["selected_by"]),
            },
            step_tensors=step_tensors,
            history=history,
        )
