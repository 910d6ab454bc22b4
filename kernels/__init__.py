"""CUDA C++ kernels with their NumPy twins: ``import graphkit.kernels``."""
