"""Only what pyproject.toml cannot say: the configurations of configs/ come along in the package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfigurations(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # where the checkout itself is at hand
            target = Path(self.build_lib) / "limner" / "configs"
            shutil.copytree(Path(__file__).parent / "configs", target, dirs_exist_ok=True)


setup(cmdclass={"build_py": WithConfigurations})
