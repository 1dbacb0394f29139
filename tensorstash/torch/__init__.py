"""Arrays and records as torch tensors, and what feeds them to a training loop."""

from .batch import Batch
from .dataset import ArrayDataset
from .present import present as present
from .present import rows as rows
from .tensors import Tensors, to_numpy, to_tensor
from .worker_errors import fit as fit

__all__ = ["ArrayDataset", "Batch", "Tensors", "to_numpy", "to_tensor"]
