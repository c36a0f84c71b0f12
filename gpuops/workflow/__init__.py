"""The stories, told top to bottom. The command line and Python scripts both call these.

Who releases a machine: until a job has started, this computer does, on any exit. From then on the machine does it
itself, and this computer only once the results are home.
"""

from gpuops.workflow.bills import Bills, bills
from gpuops.workflow.doctor import doctor, policy
from gpuops.workflow.farewell import Farewell, down
from gpuops.workflow.leaving import Leaving, uninstall
from gpuops.workflow.machines import Reaped, check_line, extend, is_overdue, offers, reach, reap, rehearse, status, up
from gpuops.workflow.session import address_book, ledger, run_store
from gpuops.workflow.takeover import Takeover, admit, adopt
from gpuops.workflow.training import Detached, Finished, attach, estimate, pull, train
from gpuops.workflow.tunnels import Forward, Left, notebook, stop_notebook, tunnel

__all__ = [
    "Bills",
    "Detached",
    "Farewell",
    "Finished",
    "Forward",
    "Leaving",
    "Left",
    "Reaped",
    "Takeover",
    "address_book",
    "admit",
    "adopt",
    "attach",
    "bills",
    "check_line",
    "doctor",
    "down",
    "estimate",
    "extend",
    "is_overdue",
    "ledger",
    "notebook",
    "offers",
    "policy",
    "pull",
    "reach",
    "reap",
    "rehearse",
    "run_store",
    "status",
    "stop_notebook",
    "train",
    "tunnel",
    "uninstall",
    "up",
]
