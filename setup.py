"""What pyproject.toml cannot say: packages are all folders with an __init__.py, and how the kernels are built.

The kernels are loaded by ctypes and use nothing of Python, so one wheel of a platform serves every version of Python.
Where one of them cannot be built, torch computes the same; BLINDFORMER_KERNELS=torch builds none, for a wheel that runs
on every platform.
"""

import os
import platform
from pathlib import Path
from zlib import crc32

from setuptools import Extension, find_packages, setup

# By level of processors: the plain one, and those of x86-64 (levels.py).
LEVELS: dict[str, list[str]] = {"_kernels": []}
if platform.machine() in ("x86_64", "AMD64"):
    LEVELS |= {
        "_kernels_v3": ["-march=x86-64-v3"],
        "_kernels_v4": ["-march=x86-64-v4"],
        "_kernels_v4_vnni": ["-march=x86-64-v4", "-mavx512vnni"],
    }

KERNELS = sorted(Path("protocols/kernels").glob("*.[ch]"))

setup(
    script_name="setup.py",  # so that this file is no module of the package, whoever runs it
    packages=["blindformer", *(f"blindformer.{name}" for name in find_packages(exclude=["bench*", "tests*"]))],
    package_dir={"blindformer": "."},
    package_data={
        "blindformer": ["py.typed", "docs/blindformer.toml"],
        "blindformer.parties.gateway": ["page.html"],
        "blindformer.models.students": ["*/*"],
    },
    ext_modules=[]
    if os.environ.get("BLINDFORMER_KERNELS") == "torch"
    else [
        Extension(
            f"blindformer.protocols.kernels.{name}",
            [str(file) for file in KERNELS if file.suffix == ".c"],
            depends=[str(file) for file in KERNELS if file.suffix == ".h"],
            define_macros=[("SOURCES", str(crc32(b"".join(file.read_bytes() for file in KERNELS))))],
            extra_compile_args=["-O3", "-fwrapv", "-ffp-contract=off", *level],
            optional=True,
            py_limited_api=True,
        )
        for name, level in LEVELS.items()
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
