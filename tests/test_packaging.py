"""What is installed: graphkit and graphkit.kernels, and never a top-level `kernels`."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE_DIR = PROJECT["tool"]["setuptools"]["package-dir"]


def packages_in_folders() -> set[str]:
    names = set()
    for package, folder in PACKAGE_DIR.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / folder).parts
            names.add(".".join((package, *parts)))
    return names


def installed_files() -> set[str]:
    """Return the archive names of every file in the folders that an installation needs."""
    names = set()
    for package, folder in PACKAGE_DIR.items():
        for path in (ROOT / folder).rglob("*"):
            hidden = any(part.startswith((".", "__pycache__")) for part in path.parts)
            if path.is_file() and not hidden:
                inside = path.relative_to(ROOT / folder).as_posix()
                names.add(f"{package.replace('.', '/')}/{inside}")
    return names


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel of this checkout, built from a copy so that nothing is left behind."""
    checkout = tmp_path_factory.mktemp("checkout")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.fail("the packaging test runs in a git checkout: it asks git which files belong")
    for name in names.decode().split("\0"):
        source = ROOT / name
        if name.startswith(("graphkit/", "kernels/", "pyproject", "README", "LICENSE")):
            if not source.is_file():
                continue
            target = checkout / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(checkout / "dist"), str(checkout)]
    built = subprocess.run(command, capture_output=True, text=True, cwd=checkout)
    assert built.returncode == 0, built.stderr
    (path,) = (checkout / "dist").glob("cuda_graphkit-*.whl")
    return set(zipfile.ZipFile(path).namelist())


def test_the_list_of_packages_equals_the_folders_with_an_init():
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert set(listed) == packages_in_folders()
    assert listed == sorted(listed)


def test_a_wheel_holds_graphkit_and_its_metadata_and_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel}
    assert "kernels" not in tops
    version = PROJECT["project"]["version"]
    assert tops == {"graphkit", f"cuda_graphkit-{version}.dist-info"}


def test_a_wheel_holds_every_file_of_the_two_folders(wheel):
    assert installed_files() - wheel == set()
    assert any(name.startswith("graphkit/kernels/") and name.endswith(".cu") for name in wheel)
    assert any(name.endswith(".safetensors") for name in wheel)
    assert "graphkit/py.typed" in wheel


def test_an_installation_finds_the_kernels_and_adds_no_top_level_name():
    code = (
        "import graphkit.kernels, importlib.util\n"
        "print(graphkit.kernels.__name__, importlib.util.find_spec('kernels'))"
    )
    # Run away from the checkout: in it, the folder `kernels` is on the path as such.
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=Path(sys.prefix)
    )
    assert found.stdout.split() == ["graphkit.kernels", "None"], found.stderr


def test_no_extra_clashes_with_the_tests():
    """`make` installs `test` beside cu12 or cu13, so it may ask for neither major alone."""
    extras = PROJECT["project"]["optional-dependencies"]
    (bindings,) = (need for need in extras["test"] if need.startswith("cuda-bindings"))
    assert bindings == "cuda-bindings>=12.9,<14"
    assert "cuda-bindings>=12.9,<13" in extras["cu12"]
    assert "cuda-bindings>=13,<14" in extras["cu13"]


def test_without_an_extra_nothing_of_cuda_is_installed():
    needs = " ".join(PROJECT["project"]["dependencies"])
    assert "cuda" not in needs
    assert "cupy" not in needs


def test_the_version_stands_once():
    import graphkit

    assert (
        getattr(graphkit, "__version__", PROJECT["project"]["version"])
        == (PROJECT["project"]["version"])
    )


def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"
