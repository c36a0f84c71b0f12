import ast
from pathlib import Path

import pytest

import trainer

FILES = sorted(Path(trainer.__file__).parent.rglob("*.py"))
FORBIDDEN = {"gpuops", "click", "boto3", "paramiko", "pickle", "shelve", "marshal"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_of_the_trainer_imports_nothing_forbidden(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_of_the_trainer_neither_pickles_nor_evaluates(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"torch.load", "torch.save", "eval", "exec", "__import__", "np.load"}


def test_the_contract_with_gpuops_has_a_number() -> None:
    assert trainer.CONTRACT == 1
