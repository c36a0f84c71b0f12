"""Snapshots: the weights at the end of a cycle, kept in `checkpoints/` beside the last checkpoint.

Snapshot ensembles: Huang et al., "Snapshot Ensembles: Train 1, Get M for Free" (arXiv:1704.00109). fast.ai 0.7 saved a
cycle one batch too early; these are taken after its last step.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trainer.errors import RunDirRefused
from trainer.rundir import RunDir, write_atomically
from trainer.weights import save_weights


def write(rundir: RunDir, stage_index: int, cycle: int, tensors: Mapping[str, Tensor]) -> str:
    """Keep the weights of the stage's cycle; its name. Raises DiskFull, RunDirRefused."""
    name = f"stage-{stage_index}-cycle-{cycle}.safetensors"
    save_weights(tensors, _folder(rundir) / name)
    return name


def load(rundir: RunDir, name: str, module: nn.Module) -> None:
    """Put the snapshot's weights into the network. Raises RunDirRefused where it is gone, damaged or of another one."""
    path = _folder(rundir) / name
    try:
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: of another network
        raise RunDirRefused(f"The snapshot {path} cannot be read: {error}", "Start over in another --out") from error


def forget(rundir: RunDir, but: Sequence[str]) -> None:
    """Delete the snapshots that nothing needs any more."""
    for path in _folder(rundir).glob("stage-*-cycle-*.safetensors"):
        if path.name not in but:
            path.unlink()


def copy(rundir: RunDir, names: Sequence[str], out: Path) -> None:
    """Put the snapshots that the end predicts with beside the weights. Raises DiskFull, RunDirRefused."""
    for name in names:
        write_atomically(out / name, (_folder(rundir) / name).read_bytes())


def _folder(rundir: RunDir) -> Path:
    return rundir.checkpoint.parent
