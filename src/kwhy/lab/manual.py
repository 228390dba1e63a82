"""The manual's pages, for quoting what they say on an error number."""

from kwhy.lab.packages import manual_dir

__all__ = ["manual_dir"]
