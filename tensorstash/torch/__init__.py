"""Training with PyTorch: loaders, samplers and datasets for stored arrays and records."""

from ..loading.present import Batch
from ..sources.mixture import mix
from ..sources.patches import Patches
from ..sources.windows import Windows
from ..tensors import to_numpy, to_tensor
from ..view import Tensors
from .dataset import ArrayDataset
from .loader import Loader, ShuffleBatchSampler, ShuffleSampler

__all__ = [
    "ArrayDataset",
    "Batch",
    "Loader",
    "Patches",
    "ShuffleBatchSampler",
    "ShuffleSampler",
    "Tensors",
    "Windows",
    "mix",
    "to_numpy",
    "to_tensor",
]
