"""Commands end with the next one to type, at a terminal alone."""

import os
import pty
import subprocess
import sys


def test_a_terminal_is_told_what_to_type_next_and_a_pipe_is_not(demo_tissue, tmp_path):
    section = str(demo_tissue(tmp_path / "tissue")[0])
    command = [sys.executable, "-m", "histocrypt", "check", section]
    piped = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "next:" not in piped.stdout
    owner, terminal = pty.openpty()
    done = subprocess.run(command, stdout=terminal, check=False)
    os.close(terminal)
    shown = b""
    while True:
        try:
            piece = os.read(owner, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    assert done.returncode == 0
    assert f"next: histocrypt new NAME {section}" in shown.decode()
