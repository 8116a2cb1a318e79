"""Sconce: pretrain decoder-only language models from scratch, on MLX and PyTorch alike."""

__version__ = "0.1.0"
