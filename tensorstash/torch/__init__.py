"""Arrays and records as torch tensors, and what feeds them to a training loop."""

from .dataset import ArrayDataset
from .tensors import Tensors, to_numpy, to_tensor

__all__ = ["ArrayDataset", "Tensors", "to_numpy", "to_tensor"]
