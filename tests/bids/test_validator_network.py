"""A dataset can ask the BIDS validator to fetch HED's schemas; a run keeps it from the network."""

from __future__ import annotations

import json
import logging
import socket
import threading
from pathlib import Path

import pytest

from bidsapp.bids import validator
from bidsapp.bids.validator import validate_input
from bidsapp.config import OPTIONS


@pytest.fixture
def asking(tiny_dataset, validate) -> Path:
    """A dataset with annotations by a version of HED that no program brings along."""
    root = tiny_dataset(n_subjects=1, n_sessions=1, n_trials=6)
    path = root / "dataset_description.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"HEDVersion": "8.3.7"}))
    stem = root / "sub-01" / "func" / "sub-01_task-tiny_events"
    stem.with_suffix(".tsv").write_text("onset\tduration\tHED\n0\t1\tSensory-event\n")
    return root


def test_what_it_would_fetch_goes_nowhere(asking, monkeypatch, caplog):
    """A server in nowhere's place hears of every wish, and the wish is heard there."""
    heard, said = [], ""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    heard.append(connection.recv(200))

        threading.Thread(target=listen, daemon=True).start()
        monkeypatch.setattr(validator, "NOWHERE", f"http://127.0.0.1:{server.getsockname()[1]}")
        with caplog.at_level(logging.WARNING):
            try:
                validate_input(asking)
            except validator.InputProblems as error:
                said = str(error)  # of what else is wrong with it
        server.shutdown(socket.SHUT_RDWR)
    assert "SCHEMA_LOAD_FAILED" not in said
    assert any(b"githubusercontent" in request for request in heard)
    assert "HED annotations of the input were not checked" in caplog.text


def test_without_a_validator_the_log_states_how_to_install_it(tiny_dataset, monkeypatch, caplog):
    monkeypatch.setattr(validator, "_NAMES", ("no-such-program",))
    with caplog.at_level(logging.INFO, "bidsapp"):
        assert not validate_input(tiny_dataset(n_subjects=1, n_sessions=1, n_trials=6))
    (said,) = caplog.messages
    assert 'pip install "bidsapp-recon[validator]"' in said
    assert "--skip-bids-validation" in said


def test_help_and_documentation_name_the_extra_with_the_validator():
    root = Path(__file__).parents[2]
    pages = ("README.md", "docs/getting-started.md", "docs/reference/inputs.md", "docs/tutorials/own-data.md")
    for page in pages:
        text = (root / page).read_text(encoding="utf-8")
        assert 'pip install "bidsapp-recon[validator]"' in text, page
    assert "extra 'validator'" in OPTIONS["skip_bids_validation"].help
