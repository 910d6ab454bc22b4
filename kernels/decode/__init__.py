"""The decode step of a Llama in fused kernels.

A ``.cuh`` is a part of several kernels; a ``.cu`` and a ``.py`` of the same stem for each kernel.
"""
