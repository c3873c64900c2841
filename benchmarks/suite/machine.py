"""What the figures were measured on."""

import os
import platform
import time
from pathlib import Path

Facts = dict[str, str | float]


def machine() -> Facts:
    """Processor, memory, system and interpreter."""
    cpu = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "processor": cpu[0] if cpu else platform.processor(),
        "cores": float(os.cpu_count() or 1),
        "memory_gib": round(memory[0] / 2**20, 1) if memory else 0.0,
        "system": platform.platform(),
        "python": platform.python_version(),
        "day": time.strftime("%Y-%m-%d"),
    }


def busy_seconds() -> float:
    """Processor time that everybody has used so far, all cores together; stolen time too."""
    if not (lines := _lines("/proc/stat")):
        return 0.0
    fields = [int(field) for field in lines[0].split()[1:]]
    idle = fields[3] + fields[4]
    return (sum(fields[:8]) - idle) / os.sysconf("SC_CLK_TCK")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
