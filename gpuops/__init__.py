"""gpuops: from a laptop to trained weights on a GPU you don't own, and never to a bill you didn't expect."""

__version__ = "0.1.0"
