"""MosaicML Streaming, imported where its unused half does not import.

It imports torchvision for pictures that no benchmark has. The torchvision of the package index is
built for CUDA and does not import beside a torch for CPUs: then a stand-in takes its place.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from typing import Any

_NAMES = ("torchvision", "torchvision.datasets", "torchvision.transforms")
_INNER = "torchvision.transforms.functional"


def streaming() -> Any:
    """The module."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        _stand_in()
    return importlib.import_module("streaming")


def _stand_in() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    made: dict[str, Any] = {}
    for name in (*_NAMES, _INNER):
        module = made[name] = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
    made["torchvision"].datasets = made["torchvision.datasets"]
    made["torchvision"].transforms = made["torchvision.transforms"]
    made["torchvision.transforms"].functional = made[_INNER]
    made["torchvision.datasets"].VisionDataset = type("VisionDataset", (), {})
    made["torchvision.datasets"].CIFAR10 = None
    made[_INNER].to_tensor = None
