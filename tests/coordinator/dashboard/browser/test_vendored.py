"""What others wrote: its version, licence and hashes are those of the manifest, and nothing else lies there."""

import hashlib
import json
import re
from pathlib import Path

import coordinator.dashboard

STATIC = Path(coordinator.dashboard.__file__).parent / "static"
VENDOR = STATIC / "vendor"


def test_vendored_files_are_those_of_the_manifest():
    packages = json.loads((VENDOR / "manifest.json").read_text())["packages"]
    named = {name: digest for package in packages for name, digest in package["files"].items()}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDOR.iterdir()}
    del found["manifest.json"]
    assert found == named


def test_each_package_has_a_version_and_its_licence():
    for package in json.loads((VENDOR / "manifest.json").read_text())["packages"]:
        assert re.fullmatch(r"\d+\.\d+\.\d+", package["version"])
        assert package["license"] == "MIT"
        assert any(name.endswith(".LICENSE") for name in package["files"])


def test_pages_have_no_script_or_style_of_their_own_and_name_no_other_site():
    for page in STATIC.glob("*.html"):
        text = page.read_text()
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text), page.name
        assert not re.search(r"https?://", text), page.name


def test_every_module_that_is_imported_is_there():
    for module in [*STATIC.glob("*.js"), *STATIC.glob("pages/*.js")]:
        for name in re.findall(r'^import .*?from "(\..*?)";', module.read_text(), re.MULTILINE):
            assert (module.parent / name).is_file(), f"{module.name} imports {name}"
