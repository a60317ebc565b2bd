"""What `pip install .` installs, what a source distribution holds, how a build fails, and wheels
for other machines.

With AIRLLM_TEST_WHEELS=1, one of those is built for this machine's architecture, with scalar
kernels alone. The release workflow does that, and builds all of them with all kernels.
"""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import cpp_program
import pytest
import wheel_file
from cpp_program import build as cpp_build
from extension import require_cpp

ROOT = Path(__file__).parent.parent


def run(*arguments, cwd=ROOT, **variables):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """Runs a hook of setuptools' build backend in the repository; returns what it has built.

    A setuptools of its own: on Python 3.11 pythran has installed one from before pyproject.toml.
    """
    backend = tmp_path_factory.mktemp("setuptools")
    pip = ["-m", "pip", "install", "--quiet", "--target", str(backend), "setuptools>=64", "wheel"]
    if (result := run(*pip)).returncode != 0:
        pytest.skip(f"pip does not get setuptools here: {result.stderr}")

    def run_hook(hook, **variables):
        folder = tmp_path_factory.mktemp(hook)
        code = f"from setuptools import build_meta; build_meta.{hook}({str(folder)!r})"
        with cpp_program.locked(cpp_program.folder("packages")):  # build/ is one for all
            result = run("-c", code, PYTHONPATH=str(backend), **variables)
        assert result.returncode == 0, result.stdout + result.stderr
        [built] = folder.iterdir()
        return built

    return run_hook


@pytest.fixture(scope="session")
def wheel(build):
    require_cpp()
    return build("build_wheel")


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """A virtual environment with the wheel in it; returns its Python and its site-packages."""
    folder = tmp_path_factory.mktemp("venv")
    assert run("-m", "venv", "--without-pip", str(folder)).returncode == 0
    [packages] = folder.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    requirements = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "requirements.pth").write_text("\n".join(requirements))
    return folder / "bin/python", packages


@pytest.mark.packaging
def test_a_wheel_holds_the_package_its_types_and_the_extension(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "airllm").rglob("*.py")}
    extension = {name for name in names if name.endswith((".so", ".pyd"))}
    libraries = {name for name in names if name.endswith(".so.1")}
    metadata = {name for name in names if ".dist-info/" in name}
    typed = {"airllm/py.typed", "tensor_ops_cpp-stubs/__init__.pyi"}
    page = {str(path.relative_to(ROOT)) for path in (ROOT / "airllm/server/page").iterdir()}
    assert names - extension - libraries - metadata == sources | typed | page
    assert len(extension) == 1
    assert libraries == {wheel_file.ATTENTION}
    assert any(name.endswith("/LICENSE") for name in metadata)


@pytest.mark.packaging
def test_what_an_earlier_build_left_behind_is_not_in_the_wheel(wheel, build):
    left_overs = [path / "airllm/left_over.py" for path in (ROOT / "build").glob("lib.*")]
    assert left_overs
    for path in left_overs:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    try:
        assert "airllm/left_over.py" not in zipfile.ZipFile(build("build_wheel")).namelist()
    finally:
        for path in left_overs:
            path.unlink(missing_ok=True)


@pytest.mark.packaging
def test_the_installed_package_runs_on_the_installed_extension(installed, tmp_path):
    python, packages = installed
    code = "import tensor_ops_cpp, airllm; print(tensor_ops_cpp.__file__, airllm.__file__); "
    code += "from airllm.flash_attention.library import library; print(library()._name)"
    clean = {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}
    options = {"cwd": tmp_path, "env": clean, "capture_output": True, "text": True, "check": True}
    files = subprocess.run([python, "-c", code], **options).stdout.split()
    assert [Path(file).is_relative_to(packages) for file in files] == [True, True, True]
    info = subprocess.run([python, "-m", "airllm", "info", "--json"], **options).stdout
    assert json.loads(info)["backend"]["backend"] == "cpp"


# --strict complains of an ignored error that is none, so the types are seen, and are not Any.
TYPED_PROGRAM = """
from typing import assert_type
import numpy as np
import tensor_ops_cpp
from numpy.typing import NDArray
from airllm import tensor_ops_hybrid
from airllm.layer_engine import LayerWiseInferenceEngine

x = np.ones((2, 64), np.float32)
assert_type(tensor_ops_cpp.silu(x), NDArray[np.float32])
assert_type(tensor_ops_hybrid.silu(x), NDArray[np.float32])
assert_type(LayerWiseInferenceEngine("model.gguf").generate("Once").text, str)
tensor_ops_cpp.rms_norm(x, "weight")  # type: ignore[arg-type]
tensor_ops_hybrid.rms_norm(x, "weight")  # type: ignore[arg-type]
"""


@pytest.mark.packaging
def test_code_that_uses_the_installed_package_passes_mypy_strict(installed, tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "program.py").write_text(TYPED_PROGRAM)
    options = ["--strict", "--python-executable", str(installed[0])]
    cache = f"--cache-dir={ROOT / '.mypy_cache'}"
    result = run("-m", "mypy", *options, cache, "program.py", cwd=tmp_path)
    assert result.returncode == 0, result.stdout


@pytest.mark.packaging
def test_a_source_distribution_holds_what_builds_and_tests_it(build):
    with tarfile.open(build("build_sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("airllm", "cpp_ext", "tests"):
        sources = (ROOT / folder).rglob("*.*")
        made = re.compile(r"__pycache__|\.so\b")
        kept = {str(path.relative_to(ROOT)) for path in sources if not made.search(str(path))}
        assert kept <= names
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.py", ".clang-format"} <= names
    assert {"airllm/py.typed", "tensor_ops_cpp-stubs/__init__.pyi"} <= names
    assert not any(name.startswith("build") or ".so" in name for name in names)


def build_extension(tmp_path, **variables):
    """Standard error of a build that must fail."""
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    result = run("setup.py", "build_ext", *folders, **variables)
    assert result.returncode == 1
    assert list(tmp_path.rglob("*.so")) == []
    return result.stderr.splitlines()[-1]


def test_without_a_compiler_the_error_says_how_to_get_one(tmp_path):
    error = build_extension(tmp_path, PATH=str(tmp_path), CXX="")
    assert error.startswith("error: tensor_ops_cpp was not built: no C++ compiler: g++ or clang++")
    assert "apt install g++" in error
    assert "AIRLLM_NO_EXTENSION=1" in error


READ_ONLY = """
import runpy, sys
sys.path.insert(0, "cpp_ext")
import build
def fails(*_):
    raise OSError(30, "Read-only file system", "/sources/build")
build.build_extension = fails
runpy.run_path("setup.py")
"""


def test_a_tree_that_is_read_only_was_not_built(tmp_path):
    folders = ["--build-lib", str(tmp_path), "--build-temp", str(tmp_path)]
    result = run("-c", READ_ONLY, "build_ext", *folders)
    assert result.returncode == 1
    assert (
        "error: tensor_ops_cpp was not built: /sources/build: Read-only file system. Build in a "
        "folder with room that you can write to, or, for NumPy alone, set" in result.stderr
    )
    assert "Traceback" not in result.stderr


def test_a_compiler_that_does_not_exist_is_named(tmp_path):
    assert "no C++ compiler: nonsense++ is not on" in build_extension(tmp_path, CXX="nonsense++ -m")


def test_an_isa_of_another_machine_is_refused_at_build_time(tmp_path):
    error = build_extension(tmp_path, TENSOR_OPS_ISA="scalar,avx9")
    assert "TENSOR_OPS_ISA names 'avx9', which cannot be compiled for" in error


def test_the_extension_can_be_left_out(tmp_path):
    folder = ["--build-lib", str(tmp_path / "lib")]
    result = run("setup.py", "build_ext", *folder, AIRLLM_NO_EXTENSION="1", PATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.rglob("*")) == []


# ---- wheels for other machines -------------------------------------------------------------------

TARGETS = [target.name for target in cpp_build.TARGETS]
HERE = f"{platform.machine()}-linux-gnu.2.28"


@pytest.fixture(scope="session")
def target_wheel(build):
    if HERE not in TARGETS or sys.platform != "linux":
        pytest.skip(f"no target is this machine's: {HERE}")
    if not os.environ.get("AIRLLM_TEST_WHEELS"):
        pytest.skip("takes 3 minutes of CPU; the release workflow asks for it: AIRLLM_TEST_WHEELS")
    assert importlib.util.find_spec("ziglang"), "missing: pip install -e '.[wheels]'"
    return build("build_wheel", AIRLLM_TARGET=HERE, TENSOR_OPS_ISA="scalar")


@pytest.mark.packaging
def test_a_wheel_for_a_target_is_as_its_tag_says(target_wheel):
    assert target_wheel.name.endswith(f"-manylinux_2_28_{platform.machine()}.whl")
    assert wheel_file.faults(target_wheel) == []


@pytest.mark.packaging
def test_the_compiler_of_targets_warns_of_nothing(target_wheel):
    [target] = [target for target in cpp_build.TARGETS if target.name == HERE]
    made = cpp_build.records(cpp_build.target_objects(target))
    assert len(made) > 8
    assert [record.warnings for record in made.values() if record.warnings] == []


# What depends on the compiler's own libraries: exceptions, the end of threads, thread-local memory.
ON_THE_WHEEL = ("ops_errors", "ops_sampling", "cpp_executor_threads")


@pytest.mark.packaging
def test_tests_pass_on_the_wheel_for_a_target(target_wheel, tmp_path):
    """In a copy of the tests, beside which the package is what the wheel holds."""
    with zipfile.ZipFile(target_wheel) as archive:
        archive.extractall(tmp_path)
    for name in ("tests", "cpp_ext"):  # tests read tables there
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    files = [f"tests/test_{name}.py" for name in ON_THE_WHEEL]
    options = ["-q", "-n", "0", "-p", "no:cacheprovider"]
    variables = {"AIRLLM_REQUIRE_CPP": "1", "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    code = "import tensor_ops_cpp; print(tensor_ops_cpp.__file__)"
    assert run("-c", code, cwd=tmp_path, **variables).stdout.startswith(str(tmp_path))
    result = run("-m", "pytest", *options, *files, cwd=tmp_path, **variables)
    assert result.returncode == 0, result.stdout[-4000:]


def wheel_of(path, **files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.skipif(HERE not in TARGETS or sys.platform != "linux", reason="no target's machine")
def test_what_is_wrong_with_a_wheel_is_said(tmp_path):
    source = tmp_path / "other.cpp"
    source.write_text(
        "#include <cstdlib>\n#include <string>\n"
        "void f(std::string& s) { s.resize(9999); }\n"
        "void* g() { return aligned_alloc(64, 64); }\n"
    )
    compiler = cpp_build.Toolchain.native().compiler
    command = [*compiler, "-shared", "-fPIC", "-z", "execstack", source, "-o", tmp_path / "other"]
    subprocess.run(command, check=True, capture_output=True)
    content, machine = (tmp_path / "other").read_bytes(), platform.machine()
    name = f"tensor_ops_cpp.cpython-311-{machine}-linux-gnu.so"
    wheel = tmp_path / f"x-1-cp311-cp311-manylinux_2_1_{machine}.whl"
    said = wheel_file.faults(wheel_of(wheel, **{name: content, wheel_file.ATTENTION: content}))
    for fault in ("libraries ['libstdc++", "is executable", "exports ['_Z1f", "GLIBC_2.1"):
        for library in (name, Path(wheel_file.ATTENTION).name):
            assert any(fault in each and library in each for each in said)
    [fault] = wheel_file.faults(wheel_of(wheel, **{"a.so": b""}))
    assert fault == f"it holds ['a.so'], not {[name, wheel_file.ATTENTION]}"
    assert "its tag" in wheel_file.faults(tmp_path / f"x-1-cp311-cp311-linux_{machine}.whl")[0]


def test_a_target_that_does_not_exist_is_named_with_those_that_do():
    result = run("setup.py", "--version", AIRLLM_TARGET="riscv64-linux-gnu")
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1]
    assert "AIRLLM_TARGET names 'riscv64-linux-gnu'; expected one of" in error
    assert [name for name in TARGETS if name not in error] == []


def test_without_its_compiler_a_target_says_how_to_get_it(tmp_path):
    code = "import sys; sys.modules['ziglang'] = None; sys.argv = ['setup.py', 'build_ext', "
    code += f"'--build-lib', {str(tmp_path)!r}]; import runpy; runpy.run_path('setup.py')"
    result = run("-c", code, AIRLLM_TARGET=TARGETS[0])
    assert result.returncode == 1
    assert "needs Zig's compiler: pip install ziglang==" in result.stderr.splitlines()[-1]


def test_only_a_target_requires_its_compiler():
    code = "from setuptools import build_meta; print(build_meta.get_requires_for_build_wheel())"
    required = [run("-c", code, AIRLLM_TARGET=name).stdout for name in ("", TARGETS[0])]
    assert ["ziglang==" in text for text in required] == [False, True]


@pytest.mark.parametrize("target", cpp_build.TARGETS, ids=TARGETS)
def test_a_target_names_the_extension_as_its_python_looks_for_it(target):
    machine, _, libc = target.name.partition(".")[0].split("-")
    version = f"{sys.version_info.major}{sys.version_info.minor}{sys.abiflags}"
    assert target.extension_suffix == f".cpython-{version}-{machine}-linux-{libc}.so"


def test_the_compiler_of_targets_has_isas_flags_in_its_own_spelling():
    flags = ("-mavx2", "-march=armv8.2-a+dotprod")
    toolchains = [cpp_build.Toolchain(("c++",), "aarch64", zig=zig) for zig in (False, True)]
    spelled = [toolchain.machine_flags(flags) for toolchain in toolchains]
    assert spelled == [flags, ("-mavx2", "-mcpu=generic+v8_2a+dotprod")]


def test_a_release_builds_every_target():
    text = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    [built, *tested] = re.findall(r"target: \[(.*)\]", text)
    assert built.split(", ") == TARGETS
    assert tested
    assert set(tested[0].split(", ")) <= set(TARGETS)
