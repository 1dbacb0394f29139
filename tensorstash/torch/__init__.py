"""Arrays and records as torch tensors, and what feeds them to a training loop."""

from ..sources.mix import mix
from ..sources.patches import Patches
from ..sources.windows import Windows
from .batch import Batch
from .dataset import ArrayDataset
from .loader import Loader
from .present import present as present
from .present import rows as rows
from .samplers import ShuffleBatchSampler, ShuffleSampler
from .tensors import Tensors, to_numpy, to_tensor
from .worker_errors import keeping_fields as keeping_fields

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
