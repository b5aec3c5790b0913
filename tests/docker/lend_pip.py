"""Write what ``pip config list`` says as a pip.conf; print what a build must see of this machine, a volume a line."""

import ast
import os
import sys
from pathlib import Path

SETTINGS = "/etc/pip.conf"


def main() -> None:
    target = Path(sys.argv[1])
    sections: dict[str, dict[str, str]] = {}
    folders: list[Path] = []
    # The environment goes before files.
    for line in sorted(sys.stdin, key=lambda line: line.startswith(":env:")):
        key, quoted = line.rstrip("\n").split("=", 1)
        section, name = key.rsplit(".", 1)
        value = ast.literal_eval(quoted).split()
        sections.setdefault("global" if section == ":env:" else section, {})[name] = " ".join(value)
        folders += local_paths(value)
    # It may hold the password of a package index.
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        for section, settings in sections.items():
            file.write(f"[{section}]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    for path, place in [(target, SETTINGS), *((path, path) for path in dict.fromkeys(folders))]:
        print(f"{path}:{place}:ro")


def local_paths(words: list[str]) -> list[Path]:
    """Return the files and folders of this machine that a setting names; an index lies beside its files."""
    found = [Path(word.removeprefix("file://")) for word in words]
    found = [path for path in found if path.is_absolute() and path.exists()]
    return [path.parent if path.name == "simple" else path for path in found]


if __name__ == "__main__":
    main()
