"""`fasthebb`, the command: Hebbian pre-training, supervised fine-tuning and evaluation of image networks."""

from fasthebb import __version__ as __version__
