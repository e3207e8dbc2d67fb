"""Time, failure and order: the jobs, the command line, the EHR."""

from importlib.metadata import version

__version__ = version("marrow-node")
