"""Benchmarks. The package comes before torch: BLINDFORMER_KERNELS holds both to one level of processors."""

import blindformer  # noqa: F401  # pyright: ignore[reportMissingImports]
