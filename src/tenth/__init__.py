"""tenth fits a language model into a share of a device's memory, and proves that it fits."""

__version__ = "0.1.0"
__all__ = ["__version__"]
