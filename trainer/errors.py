"""Every refusal of the trainer, with its exit code.

TrainerError               1
├── RecipeRefused         20
├── DataRefused           21
├── BrokenImages          22
├── NoUsableGPU           23
├── WeightsRefused        24
├── RunDirRefused         25
├── DiskFull              26
├── Diverged              27
├── OutOfMemory           28
├── TeamLost              29
└── Stopped               128 + the signal's number (SIGINT 130, SIGTERM 143)
"""


class TrainerError(Exception):
    """What happened, and what to do next: one sentence each, without a full stop."""

    exit_code = 1

    def __init__(self, what: str, next_step: str) -> None:
        super().__init__(what, next_step)
        self.what = what
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.what}. {self.next_step}."


class RecipeRefused(TrainerError):
    """The recipe, or an override of it, asks for something that does not exist or cannot be."""

    exit_code = 20


class DataRefused(TrainerError):
    """The data is missing, unreadable or not a set of labelled images."""

    exit_code = 21


class BrokenImages(TrainerError):
    """Some images cannot be decoded and `--strict` was given."""

    exit_code = 22


class NoUsableGPU(TrainerError):
    """No GPU that this torch can use, and `--allow-cpu` was not given."""

    exit_code = 23


class WeightsRefused(TrainerError):
    """The pretrained weights are missing, damaged, or made for another network."""

    exit_code = 24


class RunDirRefused(TrainerError):
    """The run directory cannot be written, holds another run, or holds one that this recipe cannot resume."""

    exit_code = 25


class DiskFull(TrainerError):
    """Nothing more can be written."""

    exit_code = 26


class Diverged(TrainerError):
    """The training loss is no longer a number."""

    exit_code = 27


class OutOfMemory(TrainerError):
    """A step did not fit into the GPU's memory."""

    exit_code = 28


class TeamLost(TrainerError):
    """Another of the processes that train together has ended."""

    exit_code = 29


class Stopped(TrainerError):
    """A signal asked the run to end; the checkpoint stands at the step that it came in."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(
            f"Stopped by signal {signal_number} after a whole step; all that was computed is kept",
            "The same command with --resume goes on from there",
        )
        self.exit_code = 128 + signal_number
