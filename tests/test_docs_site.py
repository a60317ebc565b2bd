"""mkdocs makes a site of docs/pages, without a warning, and it needs no other host."""

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest
from doc_pages import PAGES, ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = Path(sysconfig.get_path("scripts")) / "mkdocs"
    if not program.exists():
        missing = "mkdocs is not installed here: python -m pip install -e '.[docs]'"
        if os.environ.get("AIRLLM_REQUIRE_LINT") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("site")
    command = [program, "build", "--strict", "-f", "docs/mkdocs.yml", "-d", folder]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


def test_the_site_has_every_page(site: Path) -> None:
    for page in PAGES:
        name = "index.html" if page.stem == "index" else f"{page.stem}/index.html"
        assert (site / name).exists()


def test_the_site_loads_nothing_from_other_hosts(site: Path) -> None:
    loads = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*")
    styles = re.compile(r"(?:url\(|@import )['\"]?(?:https?:)?//[^)]*")
    found = [m for p in site.rglob("*.html") for m in loads.findall(p.read_text(encoding="utf-8"))]
    found += [m for p in site.rglob("*.css") for m in styles.findall(p.read_text(encoding="utf-8"))]
    assert found == []
