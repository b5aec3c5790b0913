"""Importing the package is light, and torchvision works beside any build of torch."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "anndata", "scanpy", "pandas", "sklearn", "skimage", "matplotlib", "openslide")


def fresh(code: str) -> str:
    """Return what ``code`` prints in a process that has imported nothing."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["histocrypt", "histocrypt.cli", "histocrypt.study", "histocrypt.doctor"])
def test_import_loads_nothing_heavy(module):
    loaded = fresh(f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))")
    assert loaded == ""


def test_help_and_version_start_at_once():
    loaded = fresh(
        "import sys, histocrypt.cli; print(*sorted({'httpx', 'numpy', 'pydantic', 'rich'} & set(sys.modules)))"
    )
    assert loaded == ""


def test_torchvision_works_after_the_cure():
    code = (
        "import histocrypt.torchvision_ops, torch, torchvision\n"
        "from torchvision.transforms import v2\n"
        "network = torchvision.models.resnet18().eval()\n"
        "with torch.inference_mode(): out = network(v2.Normalize([0.5], [0.5])(torch.zeros(2, 3, 64, 64)))\n"
        "print(*out.shape, bool(torch.isfinite(out).all()), hasattr(torch.ops.torchvision, 'nms'))"
    )
    assert fresh(code) == "2 1000 True True"
