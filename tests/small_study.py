"""A study small enough to run in a test, and the way a user runs it."""

import io
import os
import re
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

SMALL = {
    "sections": [{"path": "demo"}],
    "demo": {"sections": 6, "spots_per_side": 8, "genes": 60},
    "preprocessing": {"tile_um": 150, "tile_px": 60},
    "panel": {"size": 12},
    "folds": {"scheme": "group_k_fold", "n": 3},
    "training": {"epochs": 2, "input_px": 30},
    "encrypted": {"sections": 2},
    "stacking": {"inner_folds": 2, "epochs": 20},
    "evaluation": {"bootstrap": 50, "block_um": 300, "k": [3, 6]},
}
MULTITASK = {"backbone": "efficientnet_lite0", "label": "obs:tumour", "aux_rank": 8}
DIFFUSION = {"augmentations": 0, "width": 16, "blocks": 1, "heads": 2, "samples": 4, "sampler_steps": 4}
MODELS = {"vision_mlp": {"width": 0.25}, "fhe_head": {"components": 20}, "he2gene": MULTITASK, "stem": DIFFUSION}
"""Those of the run that all tests share."""
GENERATOR = {
    "width": 8, "multipliers": [1, 2], "blocks": 1, "batch": 16, "learning_rate": 0.003, "ema": 0.9,
    "objective": "velocity",
}  # fmt: skip
WINGS = {
    "synthesis": {
        "side": 16, "generator": GENERATOR, "epochs": 2, "per_class": 8, "sampler_steps": 4,
        "reconstruction_epochs": 3, "segmentation_epochs": 2, "quality_tiles": 20,
    },
    "audit": {
        "models": ["encoder_ridge", "fhe_head", "vision_mlp"], "shadowed": ["encoder_ridge"], "shadows": 6,
        "shadow_epochs": 2, "leaky_epochs": 900, "decrypted_spots": 4, "embedded_tiles": 8,
        "decoder_epochs": 1, "draws": 50, "shadow_generators": 6, "shadow_generator_epochs": 1,
    },
}  # fmt: skip
"""Synthetic tiles and an audit, in the run that all tests share alone."""


def write_study(folder: Path, name: str, **changes) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "name": name, **changes}))
    return path


def places(outputs: Path) -> dict[str, str]:
    return {"HISTOCRYPT_OUTPUTS": str(outputs), "HISTOCRYPT_CACHE": str(outputs / "cache")}


def environment(outputs: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **places(outputs), "PATH": path}


def histocrypt(*arguments: str | Path, outputs: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "histocrypt", *map(str, arguments)]
    return subprocess.run(command, env=environment(outputs), capture_output=True, text=True, check=False)


def in_process(*arguments: str | Path, outputs: Path) -> subprocess.CompletedProcess:
    """Do what `histocrypt` does and return the same, in this process, which has imported everything already."""
    from histocrypt.cli import main

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["histocrypt", *map(str, arguments)])
        for name, value in places(outputs).items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            main()
    return subprocess.CompletedProcess(arguments, end.value.code or 0, out.getvalue(), err.getvalue())


def planned(study: str | Path, *arguments: str | Path, outputs: Path) -> str:
    """Return what ``histocrypt run --dry-run`` prints; in this process, which has imported everything already."""
    from histocrypt.cli import app

    command = ["run", str(study), "--dry-run", *map(str, arguments)]
    done = CliRunner(env=places(outputs)).invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def planned_jobs(said: str) -> dict[str, int]:
    """Return the number of jobs of each notebook in what `histocrypt run --dry-run` printed."""
    return {name: int(number) for name, number in re.findall(r"^(\d\d_\w+) +(\d+) ", said, flags=re.MULTILINE)}


def interruptible() -> None:
    """Give a child its Ctrl-C back: what is started in the background inherits an ignored one, a person's shell not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
