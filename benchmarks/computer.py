"""The computer that a benchmark ran on, as its JSON names it."""

import os
import platform
from pathlib import Path


def hardware() -> dict[str, object]:
    """Processor, cores, system, and the load that other programs put on it just now."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = named[0] if named else model
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.platform(), "load": round(os.getloadavg()[0], 1)}
