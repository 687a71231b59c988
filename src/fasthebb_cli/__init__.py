"""Hebbian pre-training, supervised fine-tuning and evaluation of image networks."""

__version__ = "0.1.0"
