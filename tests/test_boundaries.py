"""Who may import whom, and what occurs nowhere: read off the source, imports inside functions included."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

_CHECKOUT = Path(__file__).resolve().parents[1]
_LEAVES = (
    *("settings", "runs", "results", "cost", "render", "ssh_config", "host_keys", "launches", "durable"),
    *("ledger", "machine_hours", "openssh"),
)


def _files(package: str) -> list[Path]:
    return sorted((_CHECKOUT / package).rglob("*.py"))


def _module(path: Path) -> str:
    return ".".join(path.relative_to(_CHECKOUT).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path) -> Iterator[str]:
    """Every module that the file imports when it runs, "package.module.name" for names imported from a module."""
    tree = ast.parse(path.read_bytes())
    for node in _running(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`, which never run."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield from _running(child)


def _importers(package: str, names: set[str]) -> set[str]:
    """The modules of `package` that import any of these top-level packages."""
    return {
        _module(path) for path in _files(package) if any(name.partition(".")[0] in names for name in _imports(path))
    }


def _ours(module: str) -> set[str]:
    """The modules of gpuops that this one imports, each to its first level: "gpuops.providers", "gpuops.machine"."""
    path = _CHECKOUT / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    known = {_module(file) for file in _files("gpuops")}
    found = set()
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "gpuops" and (target := ".".join(parts[:2])) in known and len(parts) > 1:
            found.add(target)
    return found - {module}


def test_gpuops_never_imports_torch_or_the_trainer() -> None:
    assert _importers("gpuops", {"torch", "torchvision", "trainer"}) == set()


def test_the_trainer_never_imports_gpuops_or_what_only_gpuops_needs() -> None:
    assert _importers("trainer", {"gpuops", "click", "boto3", "botocore", "paramiko"}) == set()


@pytest.mark.parametrize(
    ("libraries", "homes"),
    [
        ({"click", "rich"}, ("gpuops.cli",)),
        ({"boto3", "botocore"}, ("gpuops.providers.aws", "gpuops.sandbox")),
        ({"paramiko"}, ("gpuops.transports",)),
        ({"moto", "asyncssh", "flask", "werkzeug", "yaml"}, ("gpuops.sandbox",)),
    ],
)
def test_a_library_is_imported_in_its_own_place_only(libraries: set[str], homes: tuple[str, ...]) -> None:
    importers = _importers("gpuops", libraries)
    assert importers, "the rule is about nothing"
    assert {m for m in importers if not any(m == home or m.startswith(f"{home}.") for home in homes)} == set()


@pytest.mark.parametrize("module", ["gpuops.machine", "gpuops.errors"])
def test_values_and_errors_import_nothing_of_ours(module: str) -> None:
    assert _ours(module) == set()


@pytest.mark.parametrize("leaf", _LEAVES)
def test_a_leaf_imports_only_leaves(leaf: str) -> None:
    allowed = {f"gpuops.{name}" for name in (*_LEAVES, "machine", "errors")}
    modules = [m for m in map(_module, _files("gpuops")) if m == f"gpuops.{leaf}" or m.startswith(f"gpuops.{leaf}.")]
    assert modules
    for module in modules:
        assert _ours(module) <= allowed, module


@pytest.mark.parametrize("package", ["providers", "transports"])
def test_only_its_open_function_names_an_implementation(package: str) -> None:
    inside = _CHECKOUT / "gpuops" / package
    implementations = {path.stem for path in inside.iterdir() if path.stem not in {"__init__", "__pycache__"}}
    prefix = f"gpuops.{package}."
    outsiders = {
        _module(path): name
        for path in _files("gpuops")
        if inside not in path.parents
        for name in _imports(path)
        if name.startswith(prefix) and name.removeprefix(prefix).partition(".")[0] in implementations
    }
    assert outsiders == {}


def test_the_machinery_below_knows_nothing_of_the_stories_above() -> None:
    for module in ("lifecycle", "providers", "providers.aws", "transports", "transports.ssh"):
        assert _ours(f"gpuops.{module}") & {"gpuops.cli", "gpuops.workflow"} == set(), module


def test_nothing_outside_the_sandbox_and_the_clis_option_names_it() -> None:
    # In the tree of all errors the sandbox's own has its place; who raises it is the next test's.
    allowed = {_CHECKOUT / "gpuops" / name for name in ("cli/__init__.py", "cli/sandbox.py", "errors.py")}
    named = [
        f"{path.relative_to(_CHECKOUT)}:{token.start[0]}"
        for path in (*_files("gpuops"), *_files("trainer"))
        if _CHECKOUT / "gpuops" / "sandbox" not in path.parents and path not in allowed
        for token in tokenize.tokenize(io.BytesIO(path.read_bytes()).readline)
        if "sandbox" in token.string.lower() and token.type != tokenize.ENCODING and not _is_advice(token)
    ]
    assert named == []
    assert [t.name for t in (_CHECKOUT / "templates").rglob("*") if t.is_file() and b"sandbox" in t.read_bytes()] == []


def test_the_sandbox_and_its_error_are_imported_by_nobody_else() -> None:
    importers = {
        _module(path)
        for path in _files("gpuops")
        for name in _imports(path)
        if name.startswith("gpuops.sandbox") or name in {"gpuops.errors.SandboxError", "gpuops.cli.sandbox"}
    }
    outside = {module for module in importers if not module.startswith("gpuops.sandbox")}
    assert outside | {"gpuops.cli.sandbox"} == {"gpuops.cli", "gpuops.cli.sandbox"}


def _is_advice(token: tokenize.TokenInfo) -> bool:
    """True for a sentence that tells a person what to type: the command's name stands in it, and no code acts on it."""
    return token.type == tokenize.STRING and "gpuops --sandbox" in token.string


@pytest.mark.parametrize("package", ["gpuops", "trainer"])
def test_nothing_loaded_can_run_code(package: str) -> None:
    """Law 8: no unpickling, no evaluation of text, no shell in between."""
    found = []
    for path in _files(package):
        found += [
            f"{_module(path)} imports {n}" for n in _imports(path) if n.split(".")[0] in {"pickle", "dill", "shelve"}
        ]
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                shell = any(k.arg == "shell" and ast.unparse(k.value) != "False" for k in node.keywords)
                if name in {"eval", "exec", "compile", "os.system", "os.popen", "torch.load"} or shell:
                    found.append(f"{_module(path)}:{node.lineno} {name}")
    assert found == []


def test_help_imports_none_of_the_heavy_libraries() -> None:
    heavy = ["boto3", "botocore", "paramiko", "cryptography", "rich", "jinja2", "moto", "asyncssh", "torch", "pathspec"]
    code = (
        "import json, sys, gpuops.cli\n"
        "try: gpuops.cli.main(['--help'])\n"
        f"except SystemExit: print(json.dumps(sorted(set({heavy}) & set(sys.modules))))"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=_CHECKOUT)
    assert json.loads(printed.splitlines()[-1]) == []


def test_every_error_has_a_documented_exit_code_and_an_id_of_its_own() -> None:
    from gpuops import errors

    tree = errors.__doc__ or ""
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.GpuopsError)]
    public = [c for c in classes if c is not errors.GpuopsError and not c.__name__.startswith("_")]
    assert len({c.id for c in public}) == len(public)
    for error in public:
        assert error.__name__ in tree
        assert 64 <= error.exit_code <= 79
        family = next(c for c in reversed(error.__mro__) if c in public)
        assert error.exit_code == family.exit_code
        line = next(line for line in tree.splitlines() if f"─ {family.__name__} " in line)
        assert f" {family.exit_code}  " in line
