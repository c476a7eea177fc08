"""The package as a whole: names, docstrings, types, and imports that do nothing but define."""

import ast
import importlib
import importlib.metadata
import inspect
import itertools
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import nanochat

SOURCE = Path(nanochat.__file__).parent
ROOT = Path(__file__).parents[1]
MODULES = sorted(module.name for module in pkgutil.walk_packages([str(SOURCE)], "nanochat."))


def test_every_public_name_is_there():
    for name in nanochat.__all__:
        assert inspect.isclass(getattr(nanochat, name)), name
        assert name in dir(nanochat)
    with pytest.raises(AttributeError, match="NoSuchThing"):
        _ = nanochat.NoSuchThing


def test_the_seeds_names_are_public():
    names = {"NanoChatConfig", "NanoChatModel", "NanoChatForCausalLM", "NanoChatPreTrainedModel", "NanoChatTokenizer"}
    assert names <= set(nanochat.__all__)


@pytest.mark.parametrize("name", ["nanochat", *MODULES])
def test_every_module_imports_and_says_what_it_is(name):
    if ".cuda" in name:
        pytest.importorskip("triton")
    module = importlib.import_module(name)
    source = Path(module.__file__)
    if source.name != "__init__.py" or source.read_text().strip():
        assert module.__doc__ and module.__doc__.strip()


def public_definitions():
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                yield f"{path.relative_to(SOURCE)}:{node.name}", node


def test_every_public_class_and_function_has_a_docstring():
    # The Primer's many small sentence makers say what they do by their names.
    makers = re.compile(r"data/primer/(documents|knowledge|numbers|relation|tasks|chatter)\.py:")
    missing = [where for where, node in public_definitions() if not ast.get_docstring(node) and not makers.match(where)]
    assert not missing


def test_every_public_function_is_typed_in_full():
    untyped = []
    for where, node in public_definitions():
        of_triton = where.startswith("native/cuda_kernels.py:")  # which knows the types of the GPU only
        if isinstance(node, ast.FunctionDef) and not of_triton:
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if node.returns is None or any(argument.annotation is None for argument in arguments):
                untyped.append(where)
    assert not untyped


def test_types_template_and_licence_are_shipped():
    assert (SOURCE / "py.typed").is_file()
    assert (SOURCE / "tokenizer" / "chat_template.jinja").is_file()
    assert importlib.metadata.metadata("nanochat")["License-Expression"] == "Apache-2.0"
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["nanochat"]
    for path in SOURCE.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            assert any(path.relative_to(SOURCE).match(pattern) for pattern in patterns), path


def test_what_is_imported_is_declared():
    """Every third-party package that the code imports is a dependency, or an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    names = {requirement.split(">")[0].split("[")[0].strip().lower().replace("-", "_") for requirement in declared}
    imported = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    third_party = imported - set(sys.stdlib_module_names) - {"nanochat"}
    assert third_party - names == set()


def test_importing_changes_nothing_around_it(tmp_path):
    """No files, no output, no threads, no other random numbers, no other defaults: in a process of its own."""
    code = f"""
import threading
import numpy, torch, transformers
before = torch.get_rng_state(), numpy.random.get_state()[1].tobytes(), torch.get_num_threads()
threads, dtype = threading.active_count(), torch.get_default_dtype()
import importlib
for name in {MODULES!r}:
    importlib.import_module(name)
after = torch.get_rng_state(), numpy.random.get_state()[1].tobytes(), torch.get_num_threads()
assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
assert threads == threading.active_count() and dtype == torch.get_default_dtype()
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_import_nanochat_alone_is_light():
    code = "import sys, nanochat; print({'torch', 'transformers', 'numpy'} & set(sys.modules) or '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
