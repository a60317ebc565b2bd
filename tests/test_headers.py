"""Where the build finds the headers that it needs, and what it says where they are not."""

import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "cpp_ext"))
import headers
from headers import (
    BuildError,
    multiarch_headers,
    pybind11_headers,
    python_headers,
    xsimd_headers,
)


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch, tmp_path):
    """Neither pythran nor the system has headers, and pip finds only what is in tmp_path/index."""
    monkeypatch.delenv("XSIMD_INCLUDE_DIR", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(headers, "SYSTEM_FOLDERS", (str(tmp_path / "usr/include"),))
    (tmp_path / "index").mkdir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path / "index")}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


def config(version):
    major, minor, patch = version.split(".")
    return (
        f"#define XSIMD_VERSION_MAJOR {major}\n"
        f"#define XSIMD_VERSION_MINOR {minor}\n"
        f"#define XSIMD_VERSION_PATCH {patch}\n"
    )


def write_xsimd(folder, version):
    path = folder / "xsimd/config/xsimd_config.hpp"
    path.parent.mkdir(parents=True)
    path.write_text(config(version))
    return folder


def write_pythran_wheel(folder, xsimd):
    """A wheel as PyPI has it, that requires what does not exist."""
    info = "pythran-0.19.0.dist-info"
    with zipfile.ZipFile(folder / "pythran-0.19.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pythran/__init__.py", "")
        wheel.writestr("pythran/xsimd/config/xsimd_config.hpp", config(xsimd))
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: pythran\nVersion: 0.19.0\nRequires-Dist: nonsense>=9\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_without_pythons_headers_the_error_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(BuildError, match=rf"no Python\.h in {tmp_path}.*apt install python3-dev"):
        python_headers()


def test_debians_configuration_is_found_for_another_machine(tmp_path, monkeypatch):
    own = tmp_path / "usr/x86_64-linux-gnu/python3.13/pyconfig.h"
    own.parent.mkdir(parents=True)
    own.write_text("#define SIZEOF_LONG 8")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "usr/python3.13"))
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: "x86_64-linux-gnu")
    folder = multiarch_headers("aarch64", tmp_path / "cache").folder
    copy = folder / "aarch64-linux-gnu/python3.13/pyconfig.h"
    assert copy.read_text() == "#define SIZEOF_LONG 8"


def test_without_pybind11_the_error_names_the_build_requirements(monkeypatch):
    monkeypatch.setitem(sys.modules, "pybind11", None)
    with pytest.raises(BuildError, match=r"pip install pybind11 'pythran>=0\.19'"):
        pybind11_headers()


def test_the_named_folder_comes_first(tmp_path, monkeypatch):
    write_xsimd(tmp_path / "usr/include", "15.0.0")
    named = write_xsimd(tmp_path / "named", "14.2.0")
    monkeypatch.setenv("XSIMD_INCLUDE_DIR", str(named))
    found = xsimd_headers(tmp_path / "cache")
    assert found.name == "xsimd 14.2.0"
    assert found.flags == ("-isystem", str(named))


@pytest.mark.parametrize("version", ["13.9.9", "8.0.0"])
def test_a_named_folder_with_an_old_version_is_refused(tmp_path, monkeypatch, version):
    monkeypatch.setenv("XSIMD_INCLUDE_DIR", str(write_xsimd(tmp_path / "named", version)))
    with pytest.raises(BuildError, match=rf"named: xsimd {version} is too old, at least 14\.0\.0"):
        xsimd_headers(tmp_path / "cache")


def test_a_named_folder_without_headers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XSIMD_INCLUDE_DIR", str(tmp_path))
    with pytest.raises(BuildError, match=r"XSIMD_INCLUDE_DIR is .* has no xsimd/xsimd\.hpp"):
        xsimd_headers(tmp_path / "cache")


def test_the_systems_headers_need_no_flag(tmp_path):
    write_xsimd(tmp_path / "usr/include", "14.0.0")
    found = xsimd_headers(tmp_path / "cache")
    assert (found.name, found.flags) == ("xsimd 14.0.0", ())


def test_headers_that_are_too_old_are_passed_over(tmp_path):
    write_xsimd(tmp_path / "usr/include", "13.0.0")
    cache = write_xsimd(tmp_path / "cache", "14.1.0")
    assert xsimd_headers(cache).folder == cache


def test_headers_are_fetched_once_and_alone(tmp_path, capfd):
    write_pythran_wheel(tmp_path / "index", "14.1.0")
    cache = tmp_path / "build/xsimd"
    for _ in range(2):
        assert xsimd_headers(cache).name == "xsimd 14.1.0"
    assert capfd.readouterr().err == "fetching xsimd's headers, in pythran>=0.19\n"
    assert [path.name for path in cache.iterdir()] == ["xsimd"]
    assert [path.name for path in cache.parent.iterdir()] == ["xsimd"]


def test_a_wheel_with_an_old_version_is_refused(tmp_path):
    write_pythran_wheel(tmp_path / "index", "13.0.0")
    with pytest.raises(BuildError, match=r"pythran-0\.19\.0-py3-none-any\.whl holds no xsimd"):
        xsimd_headers(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_without_any_the_error_says_what_was_seen_and_what_to_do(tmp_path):
    write_xsimd(tmp_path / "usr/include", "8.1.0")
    with pytest.raises(BuildError) as error:
        xsimd_headers(tmp_path / "cache")
    message = str(error.value)
    assert message.startswith("no xsimd headers of version 14.0.0 or later (")
    assert "usr/include has 8.1.0" in message
    assert "pip install pybind11 'pythran>=0.19'" in message
    assert "set XSIMD_INCLUDE_DIR" in message
    assert "No matching distribution" in message  # pip's own words
    assert list(tmp_path.glob("cache*")) == []
