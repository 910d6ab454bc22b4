"""CUDA Graphs for Python pipelines that change."""
