"""Puts what a run needs beside the library into the wheel: notebooks, workflow, studies and the lock.

All else about the package stands in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__")


class WithCheckout(build_py):
    """Copies them to ``histocrypt/checkout``, where `histocrypt.paths.repository` looks outside a clone."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if self.editable_mode:
            return
        checkout = Path(self.build_lib) / "histocrypt" / "checkout"
        for name in ("notebooks", "workflow", "studies"):
            shutil.copytree(ROOT / name, checkout / name, ignore=LEFT_OUT, dirs_exist_ok=True)
        shutil.copy(ROOT / "requirements.lock", checkout)


setup(cmdclass={"build_py": WithCheckout})
