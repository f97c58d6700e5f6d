"""The contract every stage of mars-edge shares; NumPy and OpenCV only."""

__version__ = "0.1.0"
