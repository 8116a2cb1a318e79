"""The PyTorch backend: CUDA and CPU."""

import os

# GNU OpenMP's threads spin at every barrier, by default for so long that one busy neighbour process costs most of the
# speed. Not spinning costs a quarter of it in quiet, and too short a spin 40 % of decoding, whose operations take
# microseconds (benchmarks/busy_neighbour.py). The variables are read when libgomp loads, that is, before the first
# `import torch`.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "4000")
# CUDA's blocks are of sizes that change, with the stage and between updates, evaluations and samples; in segments of a
# fixed size they leave holes. Read when CUDA begins.
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its earlier name
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

from sconce_torch.device import TorchBackend as TorchBackend
from sconce_torch.device import open_backend as open_backend
