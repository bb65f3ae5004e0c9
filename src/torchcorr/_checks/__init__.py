"""Checks of what users pass, and every message they can see."""

from .numbers import *  # noqa: F403
from .tensors import *  # noqa: F403
