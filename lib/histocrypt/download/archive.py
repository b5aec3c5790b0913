"""Archives of others, unpacked where they belong and nowhere else."""

from __future__ import annotations

import os
import shutil
import tarfile
import zlib
from pathlib import Path

from histocrypt.download.transfer import confined, need_space
from histocrypt.errors import InputError

MAX_FILES = 10_000
MAX_BYTES = 8 * 2**30


def unpack(archive: Path, folder: Path, *, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES) -> Path:
    """Unpack a ``.tar`` or ``.tar.gz`` whose members all lie in one folder, and return that folder.

    It is unpacked beside its place and moved there when whole; what was there before is replaced.

    Raises
    ------
    InputError
        If the archive is damaged or too large, or a member is a link or device or leads out of the folder.
    """
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        with tarfile.open(archive, "r:*") as tar:
            files, size = 0, 0
            for member in tar:
                path = confined(draft, member.name.removeprefix("./") or folder.name)
                if path != draft / folder.name and draft / folder.name not in path.parents:
                    msg = f"archive holds more than {folder.name}/"
                    raise InputError(msg, file=archive, value=member.name)
                if member.isdir():
                    continue
                if not member.isreg():
                    msg = "archive holds a link or a device"
                    raise InputError(msg, file=archive, value=member.name, expected="plain files")
                files, size = files + 1, size + member.size
                if files > max_files or size > max_bytes:
                    msg = f"archive is too large: more than {max_files} files or {max_bytes:,} bytes"
                    raise InputError(msg, file=archive, value=member.name)
                need_space(folder.parent, member.size, member.name)
                path.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, path.open("xb") as made:
                    shutil.copyfileobj(source, made, 2**20)
        if not files:
            msg = "archive is empty"
            raise InputError(msg, file=archive)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(draft / folder.name, folder)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        msg = f"archive cannot be unpacked ({error})"
        raise InputError(msg, file=archive, fix="delete it and download it again") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
