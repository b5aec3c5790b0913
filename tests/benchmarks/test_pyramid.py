"""A slide is tiled without being loaded. The whole size: python benchmarks/pyramid.py."""

import json
import subprocess
import sys

import pytest

from histocrypt import paths

WIDTH, HEIGHT, SPOTS = 20_000, 16_000, 60


def test_a_slide_is_made_and_tiled_without_being_held(tmp_path):
    script = paths.repository() / "benchmarks" / "pyramid.py"
    size = ["--width", WIDTH, "--height", HEIGHT, "--spots", SPOTS]
    command = [sys.executable, script, tmp_path, *size, "--json"]
    done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
    both = json.loads(done.stdout)
    made, found = both["made"], both["read"]

    assert found["image"] == "20,000 x 16,000 px, SlideImage"
    assert found["um_per_px"] == 0.25
    assert 0.9 * SPOTS <= found["tiles"] <= SPOTS  # a spot on the very rim may lie off the tissue
    assert max(found["stain_angle_deg"]) < 5
    if found["peak_gib"] is None:
        pytest.skip("this system does not tell the memory of a process")
    pixels = 3 * WIDTH * HEIGHT / 2**30
    assert made["peak_gib"] < pixels
    assert found["peak_gib"] - found["before_gib"] < pixels / 3  # what the libraries take is there before
