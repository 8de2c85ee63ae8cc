"""Scripts run as files, where their own folder comes first on the path and its `evaluate.py` hides the package."""

import subprocess
import sys
from pathlib import Path

import pytest


pytestmark = pytest.mark.long


ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*(ROOT / "scripts").glob("*.py"), *(ROOT / "dataset_scripts").glob("*.py")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_script_starts_and_explains_itself(script):
    # `predict` has a flag per modality of the checkpoint, so its help without one is its usage
    result = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stderr
    assert "usage" in result.stdout.lower()
