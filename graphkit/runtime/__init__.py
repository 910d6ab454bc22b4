"""The seam: one method per CUDA call, on a device or on the simulator."""
