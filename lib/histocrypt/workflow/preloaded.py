"""A process that has imported everything, and forks itself for each job of one thread.

Imports cost a job some six seconds of CPU, more than many notebooks take for their work. `watch` starts this process
beside Snakemake (`Preloaded`); `measure` asks it for a fork (`ask`), which runs the job in place of a new interpreter,
with the environment, folder and output of who asked. Where there is none, or a job is given several threads (libraries
read their number as they load), jobs start as everywhere.

No thread runs here whose locks a fork could hang at (where a library starts one, this process ends, and jobs start as
everywhere), and no GPU is touched: a fork is as good as a new process.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import logging
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

VARIABLE = "HISTOCRYPT_PRELOADED"
"""Holds the socket at which forks are asked for; ``0``, set by the user, means that there are to be none."""
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "NUMBA", "OPENBLAS")}
BACKEND = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "TQDM_DISABLE": "1"}
"""What a kernel sets before it imports anything; here the imports come first."""
FORKS_WELL = {"jemalloc_bg_thd"}
"""Threads that a fork may lack: that of pyarrow's allocator, which starts its own anew."""
UNUSED = ("rfc3987_syntax", "rfc3987")
"""What jsonschema imports where it is there, and no notebook needs: it takes over a second to build its grammar."""
MODULES = (
    "tqdm.auto",  # before IPython: in text, which is turned off
    "histocrypt.torchvision_ops",
    *("torch.nn.functional", "torch.optim", "torch.utils.data", "torchvision.models", "torchvision.transforms.v2"),
    *("anndata", "h5py", "pandas", "safetensors.torch", "PIL.Image", "scipy.spatial", "scipy.stats", "scipy.ndimage"),
    *("sklearn.linear_model", "sklearn.neighbors", "sklearn.metrics", "sklearn.decomposition", "sklearn.cluster"),
    *("skimage.color", "skimage.filters", "skimage.measure", "skimage.morphology", "skimage.transform"),
    *("matplotlib.pyplot", "ipykernel.kernelapp", "ipykernel.ipkernel", "papermill.cli"),
)


class Preloaded:
    """The process, from `start` to where this is left; jobs find it by `environment`, and wait until it is ready."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.environment: dict[str, str] = {}
        self.held: list[int] = []
        """What Snakemake must inherit: the process ends when it and its heirs have closed it."""
        self._end = ExitStack()

    def __enter__(self) -> Preloaded:
        from histocrypt.machine import gpus

        # Libraries do not fork well on macOS, and CUDA nowhere.
        if sys.platform != "linux" or os.environ.get(VARIABLE) == "0" or gpus():
            return self
        path = Path(self._end.enter_context(tempfile.TemporaryDirectory(prefix="histocrypt-"))) / "socket"
        self._door = self._end.enter_context(socket.socket(socket.AF_UNIX))
        self._door.bind(str(path))
        self._door.listen(64)
        self._alive, outside = os.pipe()
        self._end.callback(os.close, outside)
        self.environment, self.held = {VARIABLE: str(path)}, [outside]
        return self

    def start(self) -> None:
        """Start the process, unless it is there; nobody needs it where there is nothing to do."""
        if self.pid or not self.held:
            return
        inherited = [self._door.fileno(), self._alive]
        process = subprocess.Popen(
            [sys.executable, "-m", "histocrypt.workflow.preloaded", *map(str, inherited)],
            env={**os.environ, **ONE_THREAD, **BACKEND},
            pass_fds=inherited,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.pid = process.pid
        self._door.close()  # where the process dies, whoever waits at its door is told so
        os.close(self._alive)
        self._end.callback(process.wait)
        self._end.callback(process.kill)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.held and not self.pid:
            os.close(self._alive)
        self._end.close()


def ask(module: str, arguments: list[str]) -> int | None:
    """Have a fork run ``module`` with these arguments and return its exit code; None where no fork can be had.

    It prints to where this process prints. Ctrl-C is passed on to it, and it does not outlive this process.
    """
    path = os.environ.get(VARIABLE)
    if not path or any(os.environ.get(name, "1") != "1" for name in ONE_THREAD):
        return None
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(path)
            job = {"module": module, "arguments": arguments, "environment": dict(os.environ), "folder": str(Path.cwd())}
            socket.send_fds(line, [b"J"], [1, 2])
            line.sendall(json.dumps(job).encode() + b"\n")
            said = line.makefile()
            pid = int(said.readline())
        except (OSError, ValueError):
            return None

        def pass_on(number: int, _: object) -> None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

        signal.signal(signal.SIGINT, pass_on)
        signal.signal(signal.SIGTERM, pass_on)
        code = said.readline()
    return int(code) if code else 128 + signal.SIGKILL


def _serve(door: socket.socket, alive: int) -> Callable[[], int] | None:
    """Wait for those who ask, and fork; return in the fork what it is to do, and None when nobody can ask any more."""
    _import_all()
    if any(thread not in FORKS_WELL for thread in _threads()):
        return None
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no job is waited for here: each tells its own end
    while alive not in select.select([door, alive], [], [])[0]:
        line, _ = door.accept()
        if os.fork() == 0:
            door.close()
            os.close(alive)
            return lambda: _job(line)
        line.close()
    return None


def _threads() -> list[str]:
    """Return the names of this process's threads but for the main one."""
    tasks = (task for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid()))
    return [(task / "comm").read_text().strip() for task in tasks]


def _import_all() -> None:
    for name in UNUSED:
        sys.modules.setdefault(name, None)
    root = Path(__file__).parents[1]
    ours = (
        "histocrypt." + ".".join(file.relative_to(root).with_suffix("").parts) for file in sorted(root.rglob("*.py"))
    )
    for name in (*MODULES, *(name for name in ours if "__" not in name and "cli" not in name)):
        with suppress(ImportError):  # whoever needs it says so
            importlib.import_module(name)
    with suppress(ImportError):
        import pandas as pd

        pd.set_option("display.max_columns", 20)  # as in a kernel: here pandas takes the process for a terminal
    logging.getLogger("anndata").setLevel(logging.WARNING)  # which text columns it writes as categories is no news
    gc.collect()
    gc.freeze()  # a collection in a fork would copy what is shared


def _job(line: socket.socket) -> int:
    """Become the process that somebody asked for, and tell them how it ended."""
    import numpy as np

    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _, descriptors, _, _ = socket.recv_fds(line, 1, 2)
    job = json.loads(line.makefile().readline())
    for number, descriptor in enumerate(descriptors, start=1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    random.seed()
    np.random.seed()  # noqa: NPY002  a fork would go on with the state of its parent
    _fork_kernels(line)
    line.sendall(f"{os.getpid()}\n".encode())
    threading.Thread(target=_end_with, args=(line,), daemon=True).start()
    sys.argv = [job["module"], *job["arguments"]]
    code = _ended(lambda: importlib.import_module(job["module"]).main(*job["arguments"]))
    with suppress(OSError):
        line.sendall(f"{code}\n".encode())
    return code


def _ended(work: Callable[[], object]) -> int:
    """Do work as the last thing of a process, and return the exit code that it would have."""
    try:
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # noqa: BLE001  what an interpreter does at its end
        traceback.print_exc()
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _end_with(line: socket.socket) -> None:
    """End this process and all below it when who asked for it is gone."""
    import psutil

    with suppress(OSError):
        line.recv(1)
    for process in [*psutil.Process().children(recursive=True), psutil.Process()]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


class _Kernel:
    """A forked kernel, as jupyter_client handles one that it started."""

    stdin = stdout = stderr = None
    returncode: int | None = None

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self, *, flags: int = os.WNOHANG) -> int | None:
        if self.returncode is None:
            with suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, flags)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int | None:
        return self.poll(flags=0)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _fork_kernels(line: socket.socket) -> None:
    """Let jupyter_client fork this process where it would start this Python as a kernel."""
    from jupyter_client.provisioning import local_provisioner

    start = local_provisioner.launch_kernel

    def launch(command: list[str], **settings: object) -> object:
        program, *arguments = command
        if program != sys.executable or arguments[:2] != ["-m", "ipykernel_launcher"]:
            return start(command, **settings)
        if (pid := os.fork()) == 0:
            os.close(line.detach())  # who asked is to see the end of the job, not of its kernel
            os.setpgid(0, 0)
            os._exit(_ended(lambda: _kernel(arguments[2:], settings.get("env"), settings.get("cwd"))))
        with suppress(PermissionError):
            os.setpgid(pid, pid)  # here, too: who signals the kernel's group must not meet ours
        return _Kernel(pid)

    local_provisioner.launch_kernel = launch


def _kernel(arguments: list[str], environment: dict[str, str] | None, folder: str | None) -> None:
    import asyncio

    from ipykernel.kernelapp import IPKernelApp

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(environment or {})
    os.chdir(folder or ".")
    sys.path[0] = ""
    asyncio.set_event_loop(asyncio.new_event_loop())

    IPKernelApp.launch_instance(argv=[*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])


if __name__ == "__main__":
    if work := _serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])):
        os._exit(work())
