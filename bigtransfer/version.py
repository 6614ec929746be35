"""The version of this package; alone in its file, so that whoever asks for it imports no more."""

__version__ = "0.1.0"
