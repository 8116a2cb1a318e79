"""The PyTorch backend: CUDA and CPU."""

import os

# GNU OpenMP's threads spin at every barrier; one busy neighbour process then costs 25 times the speed. The
# variable is read when libgomp loads, that is, before the first `import torch`.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from sconce_torch.device import TorchBackend as TorchBackend
from sconce_torch.device import open_backend as open_backend
