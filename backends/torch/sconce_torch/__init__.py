"""The PyTorch backend: CUDA and CPU."""

import os

# GNU OpenMP's threads spin at every barrier, for so long that one busy neighbour process costs most of the speed;
# not spinning at all costs a quarter of it in quiet (benchmarks/busy_neighbour.py). A short spin has both. The
# variables are read when libgomp loads, that is, before the first `import torch`.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "500")

from sconce_torch.device import TorchBackend as TorchBackend
from sconce_torch.device import open_backend as open_backend
