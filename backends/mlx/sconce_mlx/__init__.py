"""The MLX backend: Apple Silicon, and the CPU on Linux."""

from sconce_mlx.blas import preload_openblas

preload_openblas()

from sconce_mlx.device import MLXBackend as MLXBackend
from sconce_mlx.device import open_backend as open_backend
