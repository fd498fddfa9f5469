"""Hot loops in C, where they were built (kernels.c), behind the torch functions that say what they compute."""
