"""The one part of the package that is compiled; everything else is said in pyproject.toml."""

from setuptools import Extension, setup

# Optional: without a C compiler the package is installed all the same, and torch computes what these loops compute.
setup(
    ext_modules=[
        Extension(
            "repro.kernels._projection",
            ["kernels/c/projection.c"],
            depends=["kernels/c/projection.h", "kernels/c/loops.h"],
            extra_compile_args=["-O3", "-Wno-psabi"],
            optional=True,
        )
    ]
)
