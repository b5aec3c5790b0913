"""The house: who may import whom. `docs/architecture.md` draws it; here it is read from the imports themselves."""

import ast
from pathlib import Path

import histocrypt

LIBRARY = Path(histocrypt.__path__[0])
FLOORS = (
    {"errors", "files", "hdf5", "kinds", "paths", "machine", "torchvision_ops", "scratch", "http", "onward", "answer"},
    {"spatial", "options", "correlation", "figure_style"},
    {"sections"},
    {"tissue"},
    {"targets"},
    {"models"},
    {"encoders"},
    {"data"},
    {"training"},
    {"predictors"},
    {"study"},
    {"demo"},
    {"trust"},
    {"explore"},
    {"pipeline"},
    {"evaluation"},
    {"report"},
    {"encrypted", "synthesis", "audit", "download", "workflow", "export", "serve"},
    {"doctor", "cli", "cli_predict", "cli_score", "__main__"},
)
"""Rooms from the ground up: a room imports from its own floor and those below."""
WINGS = {"encrypted", "synthesis", "audit", "download", "workflow", "export", "serve"}


def modules() -> dict[str, Path]:
    files = [path for path in LIBRARY.rglob("*.py") if path.name != "__init__.py"]
    return {path.relative_to(LIBRARY).with_suffix("").as_posix().replace("/", "."): path for path in files}


MODULES = modules()


def imported(path: Path, *, lazy: bool) -> set[str]:
    """Return the modules of the library that a file imports when it runs; those inside functions too if `lazy`."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not lazy:
                continue
            if isinstance(child, ast.ImportFrom) and (child.module or "").split(".")[0] == "histocrypt":
                home = child.module.removeprefix("histocrypt").removeprefix(".")
                deeper = {f"{home}.{alias.name}".removeprefix(".") for alias in child.names}
                names.update(deeper & MODULES.keys() or {home} & MODULES.keys())
            elif isinstance(child, ast.Import):
                names.update({alias.name.removeprefix("histocrypt.") for alias in child.names} & MODULES.keys())
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return names


def floor(module: str) -> int:
    return next(at for at, rooms in enumerate(FLOORS) if module.split(".")[0] in rooms)


def test_imports_point_down():
    pairs = [(module, other) for module, path in MODULES.items() for other in imported(path, lazy=True)]
    assert len(pairs) > 300
    assert not [f"{module} imports {other}" for module, other in pairs if floor(other) > floor(module)]


def test_there_is_no_circle():
    below = {module: imported(path, lazy=True) - {module} for module, path in MODULES.items()}
    while leaves := {module for module, others in below.items() if not others}:
        below = {module: others - leaves for module, others in below.items() if module not in leaves}
    assert not below


def test_the_core_runs_without_any_wing():
    core = [module for module in MODULES if module.split(".")[0] not in WINGS | FLOORS[-1]]
    assert len(core) > 40
    for module in core:
        assert not {other.split(".")[0] for other in imported(MODULES[module], lazy=True)} & WINGS, module
