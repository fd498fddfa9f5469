#!/bin/sh
# The tests of the kernels on an emulated ARM64 processor: a Debian for it, its Python, wheels from PyPI, and the kernels
# of a cross compiler. `$1`: a folder with a copy of the tree in blindformer/. Some minutes to set up, half an hour to run.
set -eu
apt-get install -y --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user debootstrap >/dev/null
root=$1/debian site=$1 wheels=$1/wheels
debootstrap --foreign --arch=arm64 --variant=minbase --include=python3,libgomp1,libstdc++6 trixie "$root" >/dev/null
for package in "$root"/var/cache/apt/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
# The last torch whose wheel for ARM64 needs no CUDA.
pip download --quiet --no-deps --only-binary=:all: --python-version 3.13 --dest "$wheels" \
  --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 --platform manylinux_2_17_aarch64 \
  torch==2.9.1 numpy typing_extensions sympy mpmath filelock fsspec jinja2 networkx markupsafe setuptools hypothesis \
  sortedcontainers pytest pluggy iniconfig packaging pygments archspec cryptography cffi pycparser psutil
for wheel in "$wheels"/*.whl; do python3 -m zipfile -e "$wheel" "$site"; done
cd "$site/blindformer/protocols/kernels"
aarch64-linux-gnu-gcc -O3 -fwrapv -shared -fPIC *.c -o _kernels.abi3.so
cat >"$site/slow.py" <<EOF
from hypothesis import HealthCheck, settings
settings.register_profile("slow", derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("slow")
EOF
cd "$site/blindformer"
exec qemu-aarch64 -L "$root" -E PYTHONPATH="$site" "$root/usr/bin/python3.13" -m pytest -p slow -p no:cacheprovider \
  --noconftest --import-mode=importlib -o addopts= -o timeout= -o faulthandler_timeout=0 -k "not x86" \
  tests/protocols/test_kernels.py tests/protocols/test_matmul.py tests/protocols/test_ring.py \
  tests/protocols/delegated/test_arithmetic.py tests/protocols/homomorphic/test_polynomials.py
