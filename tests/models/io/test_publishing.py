"""Uploading to a hub of this machine, which keeps what it is sent."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import LocalTokenNotFoundError

from sparsity_search.errors import ConfigError, MachineError
from sparsity_search.models.io.publishing import check_hub, publish

TOKEN = "hf_of_a_test"


@dataclass
class Hub:
    """A hub: what it was sent, and whether it refuses commits."""

    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    address: str = ""
    full: bool = False

    def answer(self, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        """Return status and JSON of a request."""
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user"}
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return 200, {"url": f"{self.address}/me/pruned", "name": "me/pruned"}
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            mode = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return 200, {"files": [{"path": name, **mode} for name in names]}
        if "/commit/" in path and not self.full:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
            return 200, {"commitUrl": f"{self.address}/me/pruned/commit/0", "commitOid": "0" * 40}
        return 507, {"error": "no storage is left"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, socket_enabled: None) -> Iterator[Hub]:
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, value = found.answer(self.path, body, self.headers.get("Authorization"))
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", found.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield found
    server.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"a": 1}')
    (tmp_path / "profile.json").write_text("{}")
    return tmp_path


def test_a_folder_goes_to_a_private_repository(hub: Hub, folder: Path) -> None:
    check_hub("me/pruned")
    assert publish(folder, "me/pruned") == f"{hub.address}/me/pruned"
    (created,) = hub.created
    assert (created["name"], created["visibility"]) == ("pruned", "private")
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_upload_that_fails_says_how_to_repeat_it(hub: Hub, folder: Path) -> None:
    hub.full = True
    with pytest.raises(MachineError, match=f"hf upload me/pruned {folder}"):
        publish(folder, "me/pruned")
    assert hub.files == {}


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("repo", ["a/b/c", "me/", "me/..x", "sp ace/x"])
def test_a_wrong_name_is_refused_before_any_work(repo: str) -> None:
    with pytest.raises(ConfigError, match="--push-to-hub"):
        check_hub(repo)


@pytest.mark.usefixtures("hub")
def test_a_wrong_token_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ConfigError, match="refuses the token"):
        check_hub("me/pruned")


def test_without_a_token_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: HfApi) -> None:
        raise LocalTokenNotFoundError("none")

    monkeypatch.setattr(HfApi, "whoami", refuse)
    with pytest.raises(ConfigError, match="hf auth login"):
        check_hub("me/pruned")


def test_a_hub_out_of_reach_is_a_fault_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: HfApi) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(HfApi, "whoami", fail)
    with pytest.raises(MachineError, match="cannot be reached: no route"):
        check_hub("me/pruned")
