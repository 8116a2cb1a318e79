"""The checks of one framework in a process of its own: `python -m sconce.conformance torch` or `mlx`.

One JSON object a line, each as soon as it is known, so that a crash loses only what had not been done.
"""

import json
import sys
from dataclasses import asdict
from typing import get_args

from sconce.backend import ComputeOptions, Hardware, Precision, load_backend
from sconce.conformance.kit import as_json, check_backend
from sconce.errors import BackendError

# The CPU first: whatever a GPU's driver does to the process, its results are out by then.
HARDWARE: dict[str, tuple[Hardware, ...]] = {"torch": ("cpu", "cuda"), "mlx": ("mlx",)}


def main(framework: str) -> None:
    """Check every device that the framework has here."""
    for hardware in HARDWARE[framework]:
        try:
            backend = load_backend(hardware)
        except BackendError:
            if hardware == "cuda":
                continue  # most machines have none
            raise
        device = backend.device()
        _write(device=asdict(device), hardware=hardware, facts=backend.facts())
        # torch.compile takes most of a minute for each model, and there are a dozen: its results are not checked here.
        compile_ = False if device.kind == "cuda" else None
        for precision in get_args(Precision):
            _write(begin=precision)
            for result in check_backend(backend, ComputeOptions(precision=precision, compile=compile_)):
                _write(result=as_json(result))
    _write(done=True)


def _write(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
