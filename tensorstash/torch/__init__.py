"""Arrays and records as torch tensors, and what feeds them to a training loop."""

from ..loading.batch import Batch
from ..sources.mix import mix
from ..sources.patches import Patches
from ..sources.windows import Windows
from ..tensors import to_numpy, to_tensor
from ..view import Tensors
from .dataset import ArrayDataset
from .loader import Loader
from .samplers import ShuffleBatchSampler, ShuffleSampler

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
