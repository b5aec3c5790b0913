"""What a job printed becomes one sentence that says what happened."""

import errno

import pytest

from histocrypt.errors import InputError
from histocrypt.study import parse_study
from histocrypt.workflow.progress import mistake, raised, reason, said_when_full

RAISED = """Executing Cell 2---------------------------------------
Traceback (most recent call last):
papermill.exceptions.PapermillExecutionError:
---------------------------------------------------------------------------
Exception encountered at "In [2]":
---------------------------------------------------------------------------
{name}                              Traceback (most recent call last)
Cell In[2], line 3
----> 3 f()

{name}: {text}
"""
DEAD = "Ending Cell 2---\nTraceback (most recent call last):\nnbclient.exceptions.DeadKernelError: Kernel died\n"


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path))
    return parse_study({"name": "some", "sections": [{"path": "demo"}]})


def said(study, tmp_path, text, **asked):
    (tmp_path / "some.log").write_text(text)
    return reason(tmp_path / "some.log", study, **asked)


def test_an_error_of_several_lines_is_said_on_one(study, tmp_path):
    text = RAISED.format(name="RuntimeError", text="the thing\nis broken")
    assert said(study, tmp_path, text) == "RuntimeError: the thing is broken"


@pytest.mark.parametrize(
    "text",
    [
        RAISED.format(name="OSError", text="[Errno 28] No space left on device"),
        RAISED.format(name="OSError", text="[Errno 28] Can't synchronously write data (file write failed: time = ...)"),
        RAISED.format(name="SafetensorError", text='Error: I/O error: Os { code: 28, "No space left on device" }'),
        "sqlite3.OperationalError: database or disk is full",
        "OSError: [Errno 122] Disk quota exceeded: '/home/somebody'",
        "zmq.error.ZMQError: No space left on device",
    ],
)
def test_a_full_disk_is_known_however_a_library_calls_it(study, tmp_path, text):
    sentence = said(study, tmp_path, text)
    assert sentence.startswith("the disk is full: ")
    assert "MiB are left in /" in sentence
    assert "make room" in sentence


def test_a_kill_and_want_of_memory_name_what_was_asked_for(study, tmp_path):
    killed = "its process was killed, probably for want of memory"
    assert said(study, tmp_path, DEAD) == killed
    assert said(study, tmp_path, DEAD, memory_mb=3072) == f"{killed}; 3.0 GiB were asked for"
    text = RAISED.format(name="MemoryError", text="Unable to allocate 728. TiB for an array")
    assert said(study, tmp_path, text, memory_mb=1024) == (
        "it ran out of memory; 1.0 GiB were asked for (MemoryError: Unable to allocate 728. TiB for an array)"
    )
    torch = RAISED.format(name="OutOfMemoryError", text="CUDA out of memory. Tried to allocate 2.00 GiB")
    assert said(study, tmp_path, torch).startswith("it ran out of memory (OutOfMemoryError: CUDA")


def test_a_mistake_of_the_user_is_said_as_it_is(tmp_path):
    (tmp_path / "some.log").write_text(RAISED.format(name="InputError", text="x.h5ad: is not there."))
    assert mistake(tmp_path / "some.log") == "x.h5ad: is not there."
    assert mistake(tmp_path / "missing.log") is None


def test_without_a_log_that_is_said(study, tmp_path):
    assert reason(tmp_path / "missing.log", study) == "no log was written"
    assert raised("just\na line\n\n") == "a line"


def test_a_full_disk_outside_a_notebook_is_the_users_to_mend(study):
    with pytest.raises(InputError, match="the disk is full"), said_when_full(study):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), said_when_full(study):
        raise PermissionError(errno.EACCES, "no")
