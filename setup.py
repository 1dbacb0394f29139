"""The kernel, a part that may be missing: pyproject.toml says everything else.

``TENSORSTASH_NATIVE=0`` builds without it, and so does a machine without a C compiler.
"""

import os
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

FOLDER = Path("tensorstash/engine/native")
# Free-threaded interpreters have no stable ABI yet: they get a build of their own.
STABLE = not sysconfig.get_config_var("Py_GIL_DISABLED")

kernel = Extension(
    "tensorstash.engine.native._kernel",
    sources=sorted(map(str, FOLDER.glob("*.c"))),
    depends=sorted(map(str, FOLDER.glob("*.h"))),
    define_macros=[("Py_LIMITED_API", "0x030B0000")] if STABLE else [],
    extra_compile_args=["-std=gnu11", "-O3", "-g0", "-pthread"],
    extra_link_args=["-pthread"],
    libraries=["dl"],
    py_limited_api=STABLE,
    optional=True,
)

built = os.environ.get("TENSORSTASH_NATIVE", "1") != "0"
setup(
    ext_modules=[kernel] if built else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if built and STABLE else {},
)
