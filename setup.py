"""The one part that is compiled; all else of the package is in pyproject.toml."""

from setuptools import Extension, setup

# Loaded with ctypes: no Python module. Where there is no compiler Python does the same, see
# kwhy.emulate.compiled.
setup(
    ext_modules=[
        Extension("kwhy.emulate._hooks", ["src/kwhy/emulate/hooks.c"], optional=True),
    ]
)
