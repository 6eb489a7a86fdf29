"""Choosing and fetching files of a Hub repository, against a server on this machine that answers as the Hub does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from naiad.loaders.hub import choose_gguf, fetch_model, split_parts

NAMES = [
    "README.md",
    "m-Q4_K_M.gguf",
    "m-Q4_K_S.gguf",
    "m-Q8_0.gguf",
    "mmproj-m-F16.gguf",
    "big-Q6_K-00001-of-00002.gguf",
    "big-Q6_K-00002-of-00002.gguf",
    "UD/m-IQ4_XS.gguf",
]
CHOICES = [
    ("", "m-Q4_K_M.gguf"),
    ("q4_k_m", "m-Q4_K_M.gguf"),
    ("Q4_K_S", "m-Q4_K_S.gguf"),
    ("Q8_0", "m-Q8_0.gguf"),
    ("q6_k", "big-Q6_K-00001-of-00002.gguf"),
    ("IQ4_XS", "UD/m-IQ4_XS.gguf"),
    ("Q4_K", None),
    ("F16", None),
]


@pytest.mark.parametrize(("quant", "expected"), CHOICES)
def test_choice_of_a_quant(quant: str, expected: str | None) -> None:
    assert choose_gguf(NAMES, quant) == expected


def test_first_file_without_q4_k_m_and_parts_of_split_files() -> None:
    assert choose_gguf(["b.gguf", "a.gguf"], "") == "a.gguf"
    assert choose_gguf(["README.md"], "") is None
    assert split_parts("x-00001-of-00003.gguf") == [f"x-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert split_parts("x.gguf") == ["x.gguf"]


@pytest.mark.parametrize("repo", ["model", "a/b/c", "", "a b/c", "../x/y", "user/model/../x"])
def test_malformed_repositories(repo: str) -> None:
    with pytest.raises(ValueError, match="user/model"):
        fetch_model(repo)


FILES = {
    "user/model": {name: f"contents of {name}".encode() for name in NAMES},
    "user/empty": {"README.md": b"nothing"},
}


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as fetching a file needs."""

    def log_message(self, *arguments: object) -> None:
        """Keeps the test's output clean."""

    def do_HEAD(self) -> None:
        self.answer(send_body=False)

    def do_GET(self) -> None:
        self.answer(send_body=True)

    def answer(self, *, send_body: bool) -> None:
        path = self.path.split("?")[0].strip("/")
        headers = {"X-Repo-Commit": "0" * 40}
        for repo, files in FILES.items():
            if path.startswith(f"api/models/{repo}/tree"):
                tree = [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in files.items()]
                return self.send(
                    200, json.dumps(tree).encode(), headers | {"Content-Type": "application/json"}, send_body
                )
            if path.startswith(f"api/models/{repo}"):
                body = json.dumps({"id": repo, "sha": "0" * 40, "siblings": [{"rfilename": n} for n in files]}).encode()
                return self.send(200, body, headers | {"Content-Type": "application/json"}, send_body)
            name = path.removeprefix(f"{repo}/resolve/").partition("/")[2]
            if path.startswith(f"{repo}/resolve/") and name in files:
                headers["ETag"] = f'"{hashlib.sha256(files[name]).hexdigest()}"'
                return self.send(200, files[name], headers, send_body)
        return self.send(404, b"{}", headers | {"X-Error-Code": "RepoNotFound"}, send_body)

    def send(self, status: int, body: bytes, headers: dict[str, str], send_body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if send_body:
            self.wfile.write(body)


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def fetch(endpoint: str, home: str, *arguments: str, offline: bool = False) -> str:
    """What a process of its own prints: the Hub's library reads its settings when it is imported."""
    program = (
        "import sys\nfrom naiad.loaders.hub import fetch_model\n"
        "try: print(fetch_model(*sys.argv[1:]).read_text())\n"
        "except (OSError, ValueError) as e: print(type(e).__name__, e)"
    )
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": home, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    environment["HF_HUB_OFFLINE"] = str(int(offline))
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_fetching(hub: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = str(tmp_path_factory.mktemp("hub"))
    assert fetch(hub, home, "user/model") == "contents of m-Q4_K_M.gguf"
    assert fetch(hub, home, "user/model:q6_k") == "contents of big-Q6_K-00001-of-00002.gguf"
    assert fetch(hub, home, "user/model:q6_k", "m-Q8_0.gguf") == "contents of m-Q8_0.gguf"
    assert fetch(hub, home, "user/model:f16").startswith("ValueError user/model has no GGUF file for f16")
    assert fetch(hub, home, "user/empty").startswith("ValueError user/empty has no GGUF file: no model files")
    assert fetch(hub, home, "user/missing").startswith("OSError cannot fetch user/missing")
    assert fetch(hub, home, "user/model:q6_k", offline=True) == "contents of big-Q6_K-00001-of-00002.gguf"
    assert fetch(hub, home, "user/other", offline=True).startswith("OSError cannot fetch user/other")
