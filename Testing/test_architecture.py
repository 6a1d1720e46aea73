"""The order of the house: imports go one way, importing the core is light, and files and functions stay short.

The floors of the core, from the ground up; a module imports from floors below its own, or from its own, and no modules
import each other in a circle. Training and benchmark build on the core and never the reverse.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = "SpatialDiffusionCore"

#: Parts of the core, the lowest first; those in one row are on one floor.
FLOORS = (
    ("errors", "heartbeat"),
    ("failure", "files", "machine", "modality"),
    ("device",),
    ("spatial",),
    ("method", "networks"),
    ("modelfile",),
    ("options",),
    ("alignment",),
    ("strategies",),
    ("pipeline",),
    ("result", "inputs", "report", "picture"),
    ("registration",),
    ("many", "review"),
    ("cli",),
)

#: Lines that a file and a function may have.
LONGEST_FILE, LONGEST_FUNCTION = 500, 60


def sources(*packages: str) -> list:
    """Python files of the named top-level packages, wherever they are; tests and stand-ins are left out."""
    found = []
    for package in packages:
        for base in (ROOT / package, ROOT / "Training" / package, ROOT / "Testing" / package):
            found += [path for path in sorted(base.rglob("*.py")) if "Testing" not in path.relative_to(base).parts]
    return found


def module_name(path: Path, package: str) -> str:
    parts = list(path.with_suffix("").parts)
    parts = parts[parts.index(package) :]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(package: str) -> dict:
    """{module: the modules of the same package that it imports}, imports inside functions and for types included.

    The package's own face is left out: it is loaded name by name, when somebody asks for it.
    A package that a module imports only in passing (``from ..spatial import geometry``) isn't counted: the edge goes to
    what is named.
    """
    paths = {module_name(path, package): path for path in sources(package)}
    graph: dict = {}
    for module, path in paths.items():
        here = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            targets = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                start = here[: len(here) - node.level + 1] if node.level else []
                base = start + (node.module.split(".") if node.module else [])
                targets = [".".join([*base, alias.name]) for alias in node.names]
                targets = [name if name in paths else ".".join(base) for name in targets]
            wanted = {name for name in targets if name in paths} - {module, package}
            graph.setdefault(module, set()).update(wanted)
    return graph


def circles(graph: dict) -> list:
    """Circles of imports, each as the names along it."""
    found, done = [], set()

    def visit(module, path):
        if module in path:
            found.append(" → ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, [*path, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def floor(module: str) -> int:
    part = module.split(".")[1]
    return next(number for number, parts in enumerate(FLOORS) if part in parts)


def test_the_imports_of_the_core_go_one_way():
    graph = imports(CORE)
    assert len(graph) > 40
    back = [
        f"{module} → {target}"
        for module, targets in graph.items()
        for target in targets
        if module != CORE and floor(target) > floor(module)
    ]
    assert not back, "imports upwards: " + ", ".join(sorted(back))


def test_every_part_of_the_core_has_its_floor():
    known = {part for parts in FLOORS for part in parts}
    there = {module.split(".")[1] for module in imports(CORE) if module != CORE}
    assert there <= known, f"say on which floor: {', '.join(sorted(there - known))}"


@pytest.mark.parametrize("package", [CORE, "SpatialDiffusionTraining", "Benchmark", "SpatialDiffusionRegistration"])
def test_no_modules_import_each_other_in_a_circle(package):
    assert not circles(imports(package))


def test_the_core_knows_neither_slicer_nor_a_window_nor_training():
    strangers = {"slicer", "qt", "ctk", "vtk", "PySide6", "SpatialDiffusionTraining", "Benchmark"}
    for path in sources(CORE):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {name.split(".")[0] for name in names} & strangers, path


@pytest.mark.parametrize("statement", [f"import {CORE}", f"from {CORE} import InputError", f"import {CORE}.cli"])
def test_importing_the_core_loads_nothing_heavy(statement):
    code = f"import sys; {statement}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert CORE in loaded and not {"torch", "scipy", "numpy", "nibabel", "SimpleITK", "PIL"} & loaded


def test_options_and_models_are_known_without_torch():
    """3D Slicer checks what was chosen, and lists the models, before PyTorch is installed."""
    code = (
        f"import sys; from {CORE} import RegistrationOptions; from {CORE}.modelfile.catalog import catalog; "
        "RegistrationOptions(steps=2); print(*catalog(), *{m.split('.')[0] for m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    known = set(done.stdout.split())
    assert {"foundation", "numpy"} <= known and not {"torch", "scipy", "nibabel", "SimpleITK", "PIL"} & known


def test_the_face_names_what_it_has():
    import SpatialDiffusionCore

    assert sorted(SpatialDiffusionCore.__all__) == sorted([*SpatialDiffusionCore._HOMES, "__version__"])
    assert dir(SpatialDiffusionCore) == sorted(SpatialDiffusionCore.__all__)
    for name in SpatialDiffusionCore.__all__:
        assert getattr(SpatialDiffusionCore, name) is not None
    assert (ROOT / CORE / "py.typed").is_file()


def everything() -> list:
    return sources(CORE, "SpatialDiffusionTraining", "Benchmark", "SpatialDiffusionRegistration")


def test_files_are_short():
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for path in everything()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    assert not long


def test_functions_are_short():
    long = {}
    for path in everything():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long[f"{path.name}:{node.name}"] = lines
    assert not long


def test_files_that_the_code_speaks_of_are_there():
    """A comment that names a file which has moved misleads whoever follows it."""
    there = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    missing = []
    for path in everything():
        for name in re.findall(r"(?<![\w.\"'/-])(?:\w+/)*(\w+\.py)\b(?!thon)", path.read_text(encoding="utf-8")):
            if name not in there:
                missing.append(f"{path.relative_to(ROOT)}: {name}")
    assert not missing
