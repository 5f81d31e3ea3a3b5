"""The HTTP server and the command line of twinshot: requests in, image files out."""

from importlib.metadata import version

__version__ = version("twinshot-server")
