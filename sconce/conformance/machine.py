"""What this machine is, as far as the standard library can tell."""

import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = ("numpy", "torch", "mlx", "safetensors", "tokenizers", "transformers")
GIB = 2**30


def machine_facts() -> dict[str, str]:
    """Label to text, in the order to show them."""
    disk = shutil.disk_usage(Path.cwd())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    facts = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": f"{processor()}, {_cores()}",
        "memory": _memory(),
        "disk here": f"{disk.free / GIB:.1f} GiB free of {disk.total / GIB:.1f}",
        "open files": f"at most {_limit(soft)}, can be raised to {_limit(hard)}",
        "Python": f"{platform.python_version()}, {sys.executable}",
        "Sconce": version("sconce-lm") or "not installed as a package",
    }
    facts |= {name: version(name) or "not installed" for name in PACKAGES}
    return facts | nvidia_gpus()


def version(package: str) -> str | None:
    """Its version, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name as its maker spells it."""
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine()


def nvidia_gpus() -> dict[str, str]:
    """The GPUs that the driver knows, whether or not PyTorch can use them."""
    query = "name,memory.total,driver_version,compute_cap"
    lines = _output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader").splitlines()
    gpus: dict[str, str] = {}
    for number, line in enumerate(lines):
        name, memory, driver, capability = ([part.strip() for part in line.split(",")] + ["unknown"] * 3)[:4]
        gpus[f"NVIDIA GPU {number}"] = f"{name}, {memory}, driver {driver}, compute capability {capability}"
    return gpus


def available_memory() -> int | None:
    """Bytes that programs could still use; None where there is no telling."""
    if sys.platform == "darwin":
        pages = [_field_text(_output("vm_stat"), f"Pages {kind}") for kind in ("free", "inactive", "speculative")]
        count = sum(int(page.rstrip(".")) for page in pages if page.rstrip(".").isdigit())
        return count * os.sysconf("SC_PAGE_SIZE") if count else None
    kib = _field(Path("/proc/meminfo"), "MemAvailable").split()
    return int(kib[0]) * 1024 if kib else None


def _memory() -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = available_memory()
    free = "unknown" if available is None else f"{available / GIB:.1f} GiB"
    return f"{total / GIB:.1f} GiB, available {free}"


def _cores() -> str:
    cores = os.cpu_count() or 1
    # A container or a batch system may allow fewer than there are; macOS cannot say.
    usable = cores if sys.platform == "darwin" else len(os.sched_getaffinity(0))
    return f"{cores} cores" if usable == cores else f"{usable} of {cores} cores"


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _field(path: Path, key: str) -> str:
    """The first "key: value" of a file; empty when there is none."""
    try:
        return _field_text(path.read_text(encoding="utf-8", errors="replace"), key)
    except OSError:
        return ""


def _field_text(text: str, key: str) -> str:
    found = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for name, _, value in found if name.strip() == key), "")


def _output(*command: str) -> str:
    """What a program prints; empty when it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
