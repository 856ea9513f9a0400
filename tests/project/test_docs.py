"""Documentation: its Python blocks run, its commands parse, the options and pages that are named exist."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

import bidsapp
from bidsapp.cli.words import normalise
from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.model_writer import FittedModel, FittedTarget, VoxelScaling, write_model
from bidsapp.decoding.streaming import predict_blocks
from bidsapp.records import Mask

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
#: Pages whose blocks have a test of their own.
ELSEWHERE = {DOCS / "tutorials/own-data.md", DOCS / "tutorials/scoring.md"}
#: Options of other programs that pages name, and one that click adds by itself.
FOREIGN = {
    *(
        "--build-arg",
        "--containall",
        "--cpus",
        "--env",
        "--imagepath",
        "--mksquashfs-args",
        "--no-home",
        "--nv",
    ),
    *("--help", "--requeue", "--secret", "--summarize", "--tmpfs", "--workdir"),
    *("--constraint", "--mail-type", "--nodelist", "--reservation"),
}


def blocks(page: Path, language: str) -> list[str]:
    """Code blocks of a page in one language, also indented ones."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return [re.sub(f"^{indent}", "", body, flags=re.MULTILINE) for indent, body in found]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "tools" / "docs_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COMMANDS: dict[str, click.Command] = hooks().commands()


def model_file(folder: Path) -> dict[str, object]:
    """The model file that a page opens, and volumes to predict from."""
    rng = np.random.default_rng(0)
    shape, n = (4, 3, 5), 30
    x = rng.standard_normal((n, 60)).astype(np.float32)
    y = rng.standard_normal((n, 7)).astype(np.float32)
    decoder = RidgeDecoder(x)
    raw = predict_blocks(decoder.operator(x, 10.0), y)
    target = FittedTarget(10.0, y, raw, np.ones(7), np.zeros(7), {})
    voxels = VoxelScaling(Mask(np.ones(shape, bool), np.eye(4)), np.zeros(60), np.ones(60))
    path = folder / "out/sub-01/func/sub-01_task-nsdcore_desc-ridge_model.h5"
    path.parent.mkdir(parents=True)
    write_model(path, FittedModel(decoder, voxels, {"vdvae": target}, x))
    return {"volumes": rng.standard_normal((2, *shape))}


PREPARE: dict[Path, Callable[[Path], dict[str, object]]] = {DOCS / "reference/model-file.md": model_file}


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python") and p not in ELSEWHERE], ids=name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = PREPARE.get(page, lambda folder: {})(tmp_path)
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


def commands_of(page: Path) -> Iterator[list[str]]:
    """Arguments of every call of the app in a page's shell blocks."""
    program = re.compile(r"(.*/)?bidsapp-recon(:[\w.-]+|[\w-]*\.sif)?")
    for block in blocks(page, "sh"):
        for line in re.split(r"\n|&&", block.replace("\\\n", " ")):
            words = shlex.split(line, comments=True)
            own = bool(words) and re.fullmatch(r"(.*/)?bidsapp-recon", words[0]) is not None
            contained = {"run"} <= set(words[1:3]) and "--entrypoint" not in words
            at = next((i for i, word in enumerate(words) if program.fullmatch(word)), None)
            if at is not None and (own or contained):
                yield words[at + 1 :]


CALLS = [(page, words) for page in PAGES for words in commands_of(page)]


def test_commands_are_found() -> None:
    assert len(CALLS) > 30
    assert {page.name for page, _ in CALLS} >= {"README.md", "cluster.md", "containers.md", "nsd.md"}


@pytest.mark.parametrize(
    ("page", "words"), CALLS, ids=lambda v: v.name if isinstance(v, Path) else " ".join(v)
)
def test_commands_parse(page: Path, words: list[str]) -> None:
    if words == ["--version"]:
        return
    command = COMMANDS.get(f"bidsapp-recon {words[0]}")
    words = words[1:] if command else words
    command = command or COMMANDS["bidsapp-recon"]
    own, _, run = " ".join(words).partition(" -- ")
    parse(command, [w for w in shlex.split(own) if w != "..."])
    if run:
        parse(COMMANDS["bidsapp-recon"], ["BIDS_DIR", "OUTPUT_DIR", "participant", *shlex.split(run)])


def parse(command: click.Command, words: list[str]) -> None:
    words = [re.sub(r"\$\{?\w+(\[\w+\])?\}?", "8", word) for word in words]
    command.make_context(str(command.name), normalise(words, command))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_exist(page: Path) -> None:
    known = {option for c in COMMANDS.values() for p in c.params for option in (*p.opts, *p.secondary_opts)}
    named = set()
    for code in re.findall(
        r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.M | re.S)
    ):
        if not re.match(r"(aws|apptainer|bosh|docker|mkdocs|pip|python|ruff|pytest|benchmarks/\S+) ", code):
            named |= set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", code))
    assert named <= known | FOREIGN


def test_pages_named_by_the_package_exist() -> None:
    for path in [*(ROOT / "bidsapp").rglob("*.py"), *(ROOT / "bidsapp").rglob("*.toml")]:
        for found in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8")):
            assert (ROOT / found).is_file(), f"{path}: {found}"


@pytest.mark.parametrize("page", sorted({*PAGES, *ROOT.glob("*.md")}), ids=name)
def test_files_named_by_a_page_exist(page: Path) -> None:
    kept = (
        r"`((?:bidsapp|tests|tools|benchmarks|container|models|report|metrics)/[\w./-]*\.(?:py|toml|sh|txt))`"
    )
    for found in re.findall(kept, page.read_text(encoding="utf-8")):
        assert (ROOT / found).exists() or (ROOT / "bidsapp" / found).exists(), found


def test_public_names() -> None:
    assert sorted(bidsapp._HOMES) == sorted(set(bidsapp.__all__) - {"__version__"})
    for public in bidsapp.__all__:
        assert getattr(bidsapp, public) is not None
        assert public in dir(bidsapp)
    with pytest.raises(AttributeError, match="no attribute 'scores'"):
        _ = bidsapp.scores


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; a = set(sys.modules); import bidsapp; print(sorted(set(sys.modules) - a))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {module.partition(".")[0] for module in re.findall(r"'([\w.]+)'", done.stdout)}
    assert loaded - set(sys.stdlib_module_names) == {"bidsapp"}


def test_generated_parts() -> None:
    module = hooks()
    made = {key: make() for key, make in module.GENERATORS.items()}
    for command in COMMANDS.values():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.opts[-1] in made["cli"]
    for key in ("sample_latents", "stored", "calibrated_norms", "[targets.&lt;target&gt;]", "91168"):
        assert key in made["recipe keys"]
    for page in DOCS.rglob("*.md"):
        filled = module.on_page_markdown(page.read_text(encoding="utf-8"))
        assert "<!-- generated" not in filled
        assert "<!-- included" not in filled


def called(name: str) -> set[str]:
    """Names that a function of the package uses."""
    module, _, function = name.rpartition(".")
    body = ast.parse((ROOT / "bidsapp" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")).body
    (code,) = (n for n in body if isinstance(n, ast.FunctionDef) and n.name == function)
    names = {node.id for node in ast.walk(code) if isinstance(node, ast.Name)}
    return names | {node.attr for node in ast.walk(code) if isinstance(node, ast.Attribute)}


def test_the_walk_from_the_command_to_an_image_follows_the_calls() -> None:
    callers: list[str] = []
    for depth, name in hooks().WALK:
        assert depth <= len(callers)
        if depth:
            assert name.rpartition(".")[2] in called(callers[depth - 1]), (name, callers[depth - 1])
        callers[depth:] = [name]
