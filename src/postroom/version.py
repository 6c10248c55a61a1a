"""The program's version, from its package."""

from importlib.metadata import version

VERSION = version("postroom")
