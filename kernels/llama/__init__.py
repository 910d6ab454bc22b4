"""A Llama decode step: the bundled model, its kernels, its graph."""
