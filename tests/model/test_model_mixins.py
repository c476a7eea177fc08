"""Transformers' public ModelTesterMixin on our classes: about a hundred tests of loading, saving, sizes, attention.

The mixin is not in the wheel, but in the source package of the same version on the package registry, which is fetched
once and kept in pytest's cache. Without a registry the test is skipped. GenerationTesterMixin, CausalLMModelTester and
the exporter tests are in neither; empty classes stand in for the two that the mixin inherits from.
"""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import transformers

# float16 is refused on purpose; the other one wants the generation mixin, which can't be had.
DESELECTED = "not fp16 and not generation_tester_mixin_inheritance"


@pytest.fixture
def hf_tests(request: pytest.FixtureRequest) -> Path:
    """A folder with a package `hf_tests`, the tests of Transformers' source package."""
    home: Path = request.config.cache.mkdir(f"transformers-{transformers.__version__}")
    package = home / "hf_tests"
    if not package.exists():
        command = "-m pip download --quiet --no-deps --no-binary transformers --disable-pip-version-check --retries 0"
        wanted = f"transformers=={transformers.__version__}"
        try:
            subprocess.run(
                [sys.executable, *command.split(), "--dest", str(home), wanted],
                check=True,
                capture_output=True,
                timeout=120,
            )
        except subprocess.SubprocessError as error:
            pytest.skip(f"the source package {wanted} can't be had from the package registry: {error}")
        with tarfile.open(next(home.glob("transformers-*.tar.gz"))) as archive:
            archive.extractall(home, filter="data")
        for stand_in, name in (("exporters/test_export", "Export"), ("generation/test_utils", "Generation")):
            file = home / f"transformers-{transformers.__version__}" / "tests" / f"{stand_in}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"class {name}TesterMixin:\n    pass\n")
        (home / f"transformers-{transformers.__version__}" / "tests").rename(package)
    return home


@pytest.mark.slow
def test_transformers_own_model_tests(hf_tests: Path) -> None:
    cases = Path(__file__).with_name("transformers_mixin.py")
    environment = os.environ | {"PYTHONPATH": str(hf_tests), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider", "-k", DESELECTED, cases],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed and int(passed[1]) > 80
