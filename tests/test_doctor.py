"""The doctor finds what is broken, says how to mend it, and never breaks itself."""

import json
import os
import sys

import pytest
from typer.testing import CliRunner

from histocrypt import doctor, paths
from histocrypt.cli import app
from histocrypt.doctor import Finding, examine, render


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    return by_name(examine())


def test_this_machine_is_whole(findings):
    assert {name: finding for name, finding in findings.items() if finding.status == "broken"} == {}
    for name in ("torch", "torchvision", "openslide", "encoder weights", "workflow", "section files"):
        assert findings[name].status == "ok", findings[name]
        assert any(character.isdigit() for character in findings[name].value)


def test_whatever_is_not_ok_says_how_to_mend_it(findings):
    assert all(finding.mend for finding in findings.values() if finding.status != "ok")
    assert all(finding.value for finding in findings.values())


def test_render_shows_every_finding_and_its_mending():
    table = render([Finding("disk", "0.1 GiB free", "broken", "free some"), Finding("torch", "2.13.0")])
    lines = table.splitlines()
    assert lines[0].split() == ["broken", "disk", "0.1", "GiB", "free"]
    assert lines[1].strip() == "-> free some"
    assert lines[2].split() == ["ok", "torch", "2.13.0"]
    assert lines[-1] == "Broken: disk."


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("raise ImportError('libcudart.so.13 is not there')", "ImportError: libcudart.so.13 is not there"),
        ("import os; os.abort()", "killed by signal 6"),
        ("raise SystemExit(3)", "ended with exit code 3, without a word"),
    ],
)
def test_a_package_that_breaks_on_import_is_a_finding(tmp_path, monkeypatch, content, told):
    (tmp_path / "openslide.py").write_text(content)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = doctor._probe("openslide", *doctor.PROBES["openslide"])
    assert finding.status == "broken"
    assert finding.value == told
    assert "install_host.sh" in finding.mend


def test_a_package_of_another_version_than_locked_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "repository", lambda: tmp_path)
    lock = tmp_path / "requirements.lock"
    lock.write_text('# exact\nnumpy==1.0.0\nno-such-package==1\nappnope==1.0.0 ; sys_platform == "other"\n')
    finding = doctor._locked()
    assert finding.status == "broken"
    assert "numpy is 2.2.6, not 1.0.0" in finding.value
    assert "no-such-package is missing" in finding.value
    assert finding.value.startswith("2 of 2 differ")
    lock.unlink()
    assert "requirements.lock" in doctor._locked().mend


def test_a_kernel_that_starts_nothing_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert doctor._kernel().status == "absent"
    spec = tmp_path / "share" / "jupyter" / "kernels" / "histocrypt" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": [str(tmp_path / "gone" / "python")]}))
    assert doctor._kernel().status == "broken"
    spec.write_text(json.dumps({"argv": [sys.executable]}))
    assert doctor._kernel().status == "ok"
    spec.write_text("{")
    assert doctor._shielded(doctor._kernel).status == "broken"


def test_data_and_outputs_are_looked_for_where_the_settings_say(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCRYPT_DATA", str(tmp_path))
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path / "not" / "yet"))
    assert doctor._data().status == "absent"
    assert "HISTOCRYPT_DATA" in doctor._data().mend
    (tmp_path / "one.h5ad").touch()
    assert doctor._data() == Finding("real sections", f"1 .h5ad in {tmp_path}")
    assert str(tmp_path / "not" / "yet") in doctor._disk().value


def test_a_gpu_whose_driver_fails_is_absent_not_fatal(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    finding = doctor._gpu()
    assert (finding.status, finding.value) == ("absent", "nvidia-smi fails: NVIDIA-SMI has failed")


def test_the_command_ends_with_1_where_something_is_broken(tmp_path, monkeypatch):
    (tmp_path / "openslide.py").write_text("raise ImportError('broken on purpose')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    # The other packages were tried by the fixture; each costs seconds.
    monkeypatch.setattr(doctor, "PROBES", {"openslide": doctor.PROBES["openslide"]})
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "broken on purpose" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("Broken: openslide.")
