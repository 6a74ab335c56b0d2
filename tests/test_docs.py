"""The documents are true: examples run, docstrings tell every argument and slot, the layers agree."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fusedstep
from conftest import VARIANTS, WITH_POW
from fusedstep import Optimizer, _native
from fusedstep.optimizers import ALL
from fusedstep.optimizers.hyperparameters import Hyperparameter
from reference import slot_names

ROOT = Path(__file__).parent.parent
ADAPTERS = {"fusedstep.torch": "torch", "fusedstep.keras": "keras", "fusedstep.thinc": "thinc"}
# Packages are imported for what is in them; those of a framework that is not there, or too old, are left out.
walked = pkgutil.walk_packages(fusedstep.__path__, "fusedstep.", onerror=lambda name: None)
MODULES = ["fusedstep", *(m.name for m in walked)]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("._native")])
def test_examples_in_docstrings(name: str) -> None:
    if name in ADAPTERS:
        pytest.importorskip(ADAPTERS[name], reason=f"{ADAPTERS[name]} is not installed")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_frameworks_are_imported_only_when_they_are_asked_for() -> None:
    program = "import sys, fusedstep; print(sorted({'torch', 'keras', 'thinc', 'jax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_class_has_an_example(cls: type[Optimizer]) -> None:
    assert ">>>" in inspect.cleandoc(cls.__doc__ or "")


def test_python_in_the_readme() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras' variables
@pytest.mark.parametrize("framework", ADAPTERS.values())
def test_python_in_the_pages_of_the_adapters(framework: str) -> None:
    pytest.importorskip(framework, reason=f"{framework} is not installed")
    page = (ROOT / "examples" / f"{framework}.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(block, page, "exec"), {})


@pytest.mark.parametrize("variant", [*VARIANTS, *WITH_POW], ids=repr)
def test_docstrings_tell_arguments_and_slots(variant: Optimizer) -> None:
    documented = "".join(cls.__doc__ or "" for cls in type(variant).__mro__)
    for name, parameter in type(variant)._hyperparameters.items():
        assert name in documented
        assert parameter.meaning
    for slot in slot_names(variant):
        assert f"``{slot}``" in documented


def test_the_layers_declare_the_same() -> None:
    """Every compiled rule is some optimizer's, with hyperparameters that the optimizer declares."""
    used = {variant._rule(): type(variant) for variant in (*VARIANTS, *WITH_POW)}
    rules = _native.rules()
    assert used.keys() == rules.keys()
    for rule, cls in used.items():
        for name in rules[rule][1]:
            assert isinstance(cls._hyperparameters[name], Hyperparameter)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_intervals_are_told_and_classes_are_in_the_readme(cls: type[Optimizer]) -> None:
    documented = "".join(base.__doc__ or "" for base in cls.__mro__)
    for name, parameter in cls._hyperparameters.items():
        if name in Optimizer._hyperparameters or not isinstance(parameter, Hyperparameter):
            continue
        text = parameter.interval.text
        if text != "(-inf, inf)":
            assert re.search(rf"{name}: [^:]*{re.escape(text)}", documented), f"{name} in {text}"
    assert re.search(rf"^\|.*`{cls.__name__}`", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_contributing_quotes_lion_as_it_is() -> None:
    """CONTRIBUTING.md's code is in the tree, but for what stands in the place of a docstring."""
    blocks = re.findall(r"```(?:c\+\+|python)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    files = ["csrc/rules/lion.hpp", "csrc/core/primitives.hpp"]
    files += ["python/fusedstep/optimizers/lion.py", "tests/reference.py"]
    for block, file in zip(blocks, files, strict=True):
        source = (ROOT / file).read_text()
        for part in re.split(r"    \(the formula.*\)\n", block):
            assert part in source


def test_the_readme_shows_the_rule_as_it_is() -> None:
    """In "This is all of Adam" the lines in the README are lines of csrc/rules/adam.hpp."""
    blocks = re.findall(r"```cpp\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    source = [line.strip() for line in (ROOT / "csrc" / "rules" / "adam.hpp").read_text().splitlines()]
    lines = [line.strip() for block in blocks for line in block.splitlines() if line.strip()]
    assert lines
    assert [line for line in lines if line not in source] == []
