"""The simulator: the CUDA calls of the seam on the host, with NumPy."""
