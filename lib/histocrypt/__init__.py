"""HistoCrypt: private prediction of spatial gene expression from H&E histology."""

__version__ = "0.2.0"
