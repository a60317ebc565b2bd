"""Runs the scripts in benchmarks/ as users do; importing it also makes their modules importable."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "benchmarks"
sys.path.append(str(SCRIPTS))


def run(script, *arguments, expect=0, **variables):
    """The finished process of a script that must end with that status."""
    result = subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=600,  # a build may come first
        check=False,
    )
    assert result.returncode == expect, result.stdout + result.stderr
    return result


def json_of(script, *arguments, **variables):
    """What a script writes with --json alone, and nothing else on standard output."""
    return json.loads(run(script, *arguments, "--json", **variables).stdout)
