"""Print the lowest allowed version of each dependency, as constraints for pip.

``python tools/lowest.py [EXTRA ...]``: the dependencies of pyproject.toml and of the extras named.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[^]]*\])?(?P<bounds>[^;]*)")
_LOWEST = re.compile(r"(?:>=|==|~=)\s*([\w.]+)")


def lowest(requirement: str) -> str:
    """Turn ``scipy>=1.14,<2`` into ``scipy==1.14``."""
    match = _REQUIREMENT.match(requirement)
    bound = _LOWEST.search(match["bounds"]) if match else None
    if match is None or bound is None:
        raise SystemExit(f"{PYPROJECT}: {requirement!r} has no lower bound. Write NAME>=VERSION.")
    return f"{match['name']}=={bound[1]}"


def constraints(extras: list[str]) -> list[str]:
    """Give the constraints of the package and of the extras, with the extras that these name."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    wanted, found = list(extras), set(map(lowest, project["dependencies"]))
    for extra in wanted:  # grows while it is read
        for requirement in project["optional-dependencies"][extra]:
            if requirement.startswith(f"{project['name']}["):
                wanted += requirement[len(project["name"]) + 1 : -1].split(",")
            else:
                found.add(lowest(requirement))
    return sorted(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help="optional dependencies to include")
    print("\n".join(constraints(parser.parse_args().extras)))
