"""Packaging: metadata is in pyproject.toml, the compiled kernels come from build_extensions.py."""

import sys
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent))
import build_extensions


class BuildKernels(build_ext):
    """Builds in place by build_extensions.py; a wheel then takes the results along."""

    def run(self) -> None:
        try:
            build_extensions.build()
        except build_extensions.BuildError as error:
            sys.exit(f"BUILD_CPP_EXTENSIONS=1 or BUILD_CUDA_EXTENSIONS=1, and the build failed: {error}")
        if not self.inplace:
            wheel = Path(self.build_lib) / build_extensions.BINDINGS.relative_to(build_extensions.ROOT)
            wheel.mkdir(parents=True, exist_ok=True)
            for earlier in wheel.glob("*.so"):  # package data was copied before this build, which may have failed
                earlier.unlink()
            for built in build_extensions.BINDINGS.glob("*"):
                if built.suffix in (".so", ".json"):
                    self.copy_file(str(built), str(wheel / built.name))

    def get_outputs(self) -> list[str]:
        """No outputs: the modules are package data."""
        return []


class BinaryDistribution(Distribution):
    """A wheel with compiled modules is for one platform."""

    def has_ext_modules(self) -> bool:
        """Always: the wheel gets a platform tag."""
        return True


setup(
    ext_modules=[Extension("bitcore.kernels.bindings._cpu", sources=[])],
    cmdclass={"build_ext": BuildKernels},
    distclass=BinaryDistribution,
)
