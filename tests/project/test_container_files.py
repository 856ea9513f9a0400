"""The images' files agree with each other and with the package: version, environment, locked versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import bidsapp

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
DEFINITION = (ROOT / "Singularity.def").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (ROOT / "container" / "requirements.txt").read_text(encoding="utf-8")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, Version]:
    lines = [line for line in LOCK.splitlines() if line and not line.startswith("#")]
    pins = [re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)", line) for line in lines]
    assert all(pins), [line for line, pin in zip(lines, pins, strict=True) if not pin]
    return {normal(pin[1]): Version(pin[2]) for pin in pins if pin}


def test_version():
    assert re.findall(r"^ARG VERSION=(.+)$", DOCKERFILE, re.MULTILINE) == [bidsapp.__version__]
    assert re.findall(r"^ +VERSION=(.+)$", DEFINITION, re.MULTILINE) == [bidsapp.__version__]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [bidsapp.__version__]


def test_both_images_have_the_same_environment():
    docker = dict(re.findall(r"^(?:ENV| {3}) ([A-Z_]+)=(\S+)(?: \\)?$", DOCKERFILE, re.MULTILINE))
    apptainer = dict(
        re.findall(r"^    export ([A-Z_]+)=(.+)$", DEFINITION.split("%environment")[1], re.MULTILINE)
    )
    assert docker.pop("BIDSAPP_RECON_CONTAINER") == "${TAG}"
    assert apptainer.pop("BIDSAPP_RECON_CONTAINER") == "bidsapp-recon:{{ VERSION }}"
    # A user's own folder reaches a SIF through the environment, where Docker has -e.
    assert (
        apptainer.pop("BIDSAPP_RECON_MODELS")
        == "${BIDSAPP_RECON_MODELS:-" + docker.pop("BIDSAPP_RECON_MODELS") + "}"
    )
    assert docker == apptainer
    assert len(docker) > 10


def test_both_images_are_made_of_the_same_files():
    docker = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    copied = {name for line in docker for name in line.split()}
    section = DEFINITION.split("%files")[1].split("%post")[0]
    assert {line.split()[0] for line in section.splitlines() if line.strip()} == copied
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


def test_the_locks_versions_are_those_the_package_asks_for():
    pins = locked()
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["demo"], *extras["validator"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[normal(requirement.name)]), text


@pytest.mark.parametrize("name", ["bidsapp-recon", "mypy", "pip", "pytest"])
def test_the_lock_is_of_what_the_app_needs(name):
    assert name not in locked()
