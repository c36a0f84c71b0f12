"""The stories, told top to bottom. The command line and Python scripts both call these.

Who releases a machine: until a job has started, this computer does, on any exit. From then on the machine does it
itself, and this computer only once the results are home.
"""

from gpuops.workflow.farewell import Farewell, down
from gpuops.workflow.machines import reach, status, up
from gpuops.workflow.session import address_book, run_store
from gpuops.workflow.training import Detached, Finished, attach, pull, train

__all__ = [
    "Detached",
    "Farewell",
    "Finished",
    "address_book",
    "attach",
    "down",
    "pull",
    "reach",
    "run_store",
    "status",
    "train",
    "up",
]
