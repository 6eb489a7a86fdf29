"""Choosing and fetching files of a Hub repository, against a server on this machine that answers as the Hub does."""

import hashlib
import json
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from naiad.loaders.hub import fetch_model
from naiad.loaders.hub_files import choose_gguf, is_model, split_parts

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


NO_MODELS = """
    mmproj-m-F16.gguf m-mmproj-BF16.gguf mm-proj.gguf m.projector.gguf imatrix.gguf imatrix_unsloth.gguf m.imatrix.gguf
    m-Q4_K_M-imatrix.gguf Qwen-IMatrix.gguf importance_matrix.gguf mtp-m-Q8_0.gguf MTP-m-Q8_0.gguf m-mtp-Q8_0.gguf
    eagle3-Q4_K_M.gguf m-EAGLE3-Q8_0.gguf dflash-m-F16.gguf dspark-m-F16.gguf draft-m-Q8_0.gguf lora.gguf
    m-lora-f16.gguf adapter-m.gguf m.control-vector.gguf ggml-vocab-llama-bpe.gguf heads/mtp-m-Q8_0.gguf
    m.safetensors README.md
"""
MODELS = """
    m-Q8_0.gguf Explora-7B-Q4_K_M.gguf Eagle-7B-Q4_K_M.gguf GLM-4.5-MTP-Q4_K_M.gguf DeepSeek-R1-DRAFT-0.6B-Q8_0.gguf
    m-lora-merged-Q4_K_M.gguf drafter-m-Q8_0.gguf mtp/m-Q8_0.gguf imatrix/m-IQ2_M.gguf
"""


def test_what_is_a_model() -> None:
    assert [name for name in NO_MODELS.split() if is_model(name)] == []
    assert [name for name in MODELS.split() if not is_model(name)] == []


@pytest.mark.parametrize(
    ("names", "quant", "expected"),
    [
        ("b.gguf a.gguf", "", "a.gguf"),
        ("m-BF16.gguf m-Q8_0.gguf", "", "m-Q8_0.gguf"),
        ("m-BF16.gguf m.q8_0.gguf m-q4_k_m.gguf", "", "m-q4_k_m.gguf"),
        ("imatrix.gguf mmproj.gguf", "", None),
        ("imatrix-Q8_0.gguf m-F16.gguf", "Q8_0", None),
        ("README.md", "", None),
        # A split file is there when all its parts are.
        ("m-Q8_0-00001-of-00003.gguf m-Q8_0-00002-of-00003.gguf m-F16.gguf", "", "m-F16.gguf"),
        ("m-Q8_0-00002-of-00002.gguf m-Q8_0-00001-of-00002.gguf", "q8_0", "m-Q8_0-00001-of-00002.gguf"),
        ("Q6_K/m-00001-of-00001.gguf Q6_K_L/m.gguf", "Q6_K", "Q6_K/m-00001-of-00001.gguf"),
        ("m-00001-of-00000.gguf", "", "m-00001-of-00000.gguf"),
        ("m-Q8_0.gguf", "Q8.0", None),
    ],
)
def test_choices_among_few(names: str, quant: str, expected: str | None) -> None:
    assert choose_gguf(names.split(), quant) == expected


def test_parts_of_split_files() -> None:
    assert split_parts("x-00002-of-00003.gguf") == [f"x-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert split_parts("x.gguf") == ["x.gguf"]


@pytest.mark.parametrize("repo", ["model", "a/b/c", "", "a b/c", "../x/y", "user/model/../x"])
def test_malformed_repositories(repo: str) -> None:
    with pytest.raises(ValueError, match="user/model"):
        fetch_model(repo)


INDEX = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
BESIDE = ("config.json", "tokenizer.json", "chat_template.jinja")
SINGLE = {name: name.encode() for name in (*BESIDE, "model.safetensors")}
PARTS = {name: name.encode() for name in (*BESIDE, "model-1.safetensors", "model-2.safetensors")} | {
    "model.safetensors.index.json": json.dumps(INDEX).encode()
}
# What repositories hold besides, and nobody opens.
NEEDLESS = {
    name: name.encode()
    for name in (
        "consolidated.safetensors",
        "model.fp16.safetensors",
        "original/model.safetensors",
        "onnx/config.json",
        "vocab.json",
        "pytorch_model.bin.index.json",
        "model-3.safetensors",
    )
}
FILES = {
    "user/model": {name: f"contents of {name}".encode() for name in NAMES},
    "user/empty": {"README.md": b"nothing"},
    "user/single": SINGLE | NEEDLESS,
    "user/parts": PARTS | NEEDLESS,
    "user/both": PARTS | SINGLE,
    "user/stale": {k: v for k, v in (PARTS | SINGLE).items() if k != "model-2.safetensors"},
    "user/lost": {k: v for k, v in PARTS.items() if k != "model-2.safetensors"},
    "user/outside": PARTS | {"model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'},
    "user/pickled": {"config.json": b"{}", "pytorch_model.bin": b""},
}


class Hub(ThreadingHTTPServer):
    """As much of the Hub as fetching needs. down: the status of all answers, or 0; headers: put over the right ones."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.down, self.commit, self.headers = 0, "a" * 40, dict[str, str]()
        self.listing: bytes | None = None
        self.fetched: list[str] = []


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *arguments: object) -> None:
        """Keeps the test's output clean."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path, hub = self.path.split("?")[0].strip("/"), self.server
        for repo, files in FILES.items():
            if hub.down:
                return self.send(hub.down, b"down")
            if path.startswith(f"api/models/{repo}"):
                listing = {"id": repo, "sha": hub.commit, "siblings": [{"rfilename": n} for n in files]}
                return self.send(200, hub.listing or json.dumps(listing).encode(), {"Content-Type": "application/json"})
            name = path.removeprefix(f"{repo}/resolve/").partition("/")[2]
            if path.startswith(f"{repo}/resolve/") and name in files:
                if self.command == "GET":
                    hub.fetched.append(name)
                tag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
                return self.send(200, files[name], {"X-Repo-Commit": hub.commit, "ETag": tag} | hub.headers)
        return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"} | hub.headers)

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    settings: dict[str, Any] = {
        "ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }
    settings |= {"HF_HUB_DISABLE_XET": True, "HF_HUB_DISABLE_PROGRESS_BARS": True}
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    template = settings["ENDPOINT"] + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", settings["ENDPOINT"])
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("NO_PROXY", "*")
    yield server
    server.shutdown()
    server.server_close()


def test_fetching_gguf_files(hub: Hub) -> None:
    for request, expected in (
        (("user/model",), "m-Q4_K_M.gguf"),
        (("user/model:q6_k",), "big-Q6_K-00001-of-00002.gguf"),
        (("user/model:q6_k", "m-Q8_0.gguf"), "m-Q8_0.gguf"),
        (("user/model", "mmproj-m-F16.gguf"), "mmproj-m-F16.gguf"),
    ):
        assert fetch_model(*request).read_text() == f"contents of {expected}"
    assert "big-Q6_K-00002-of-00002.gguf" in hub.fetched
    for repo, file, error, message in (
        ("user/model:f16", None, ValueError, "user/model has no GGUF file for f16: UD/m-IQ4_XS"),
        ("user/model", "m-Q2_K.gguf", ValueError, "user/model has no file m-Q2_K.gguf: UD/m-IQ4_XS"),
        ("user/empty", None, ValueError, "user/empty has no GGUF file: no model files"),
        ("user/pickled", None, ValueError, "user/pickled has no model.safetensors: no model files"),
        ("user/missing", None, OSError, "cannot fetch user/missing"),
    ):
        with pytest.raises(error, match=message):
            fetch_model(repo, file)


def test_only_what_is_opened_of_a_checkpoint(hub: Hub) -> None:
    for repo, expected in (("single", SINGLE), ("parts", PARTS), ("both", PARTS)):
        hub.fetched.clear()
        folder = fetch_model(f"user/{repo}")
        assert sorted(hub.fetched) == sorted(expected) == sorted(path.name for path in folder.iterdir())
    assert (fetch_model("user/stale") / "model.safetensors").read_bytes() == b"model.safetensors"
    assert "model-1.safetensors" not in {path.name for path in fetch_model("user/stale").iterdir()}
    with pytest.raises(ValueError, match=r"user/lost has no model-2.safetensors"):
        fetch_model("user/lost")
    with pytest.raises(ValueError, match=r"'../x.safetensors' is not the name"):
        fetch_model("user/outside")


@pytest.mark.parametrize("down", [401, 403, 404, 429, 500, 503, "no list", "no JSON", "offline"])
def test_cached_models_when_the_hub_fails(hub: Hub, down: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [("user/model",), ("user/model:Q8_0",), ("user/model", "m-Q4_K_S.gguf"), ("user/parts",)]
    paths = [fetch_model(*request) for request in requests]
    if isinstance(down, int):
        hub.down = down
    elif down == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        hub.listing = b"<html>" if down == "no JSON" else b'{"id": "x"}'
    for request, path in zip(requests, paths, strict=True):
        with pytest.warns(UserWarning, match="is taken from the cache, the Hub could not be asked: .") as record:
            assert fetch_model(*request) == path
        assert len(record) == 1
    # A part is missing: not a model.
    (paths[3] / "model-2.safetensors").unlink()
    with pytest.raises(OSError, match="cannot fetch user/parts"):
        fetch_model("user/parts")
    with pytest.raises(OSError, match="cannot fetch user/single"):
        fetch_model("user/single")


def test_older_snapshots_count(hub: Hub) -> None:
    old = fetch_model("user/model:Q8_0")
    hub.commit = "b" * 40
    new = fetch_model("user/model:Q4_K_S")
    hub.down = 500
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fetch_model("user/model:Q8_0") == old
        assert fetch_model("user/model:Q4_K_S") == new
        # Q8_0 goes before Q4_K_S in a listing, but what main was at last goes before older commits.
        assert fetch_model("user/model") == new


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("ETag", "../../../out/evil"),
        ("ETag", 'W/"../evil"'),
        ("X-Linked-ETag", '"/OUT/evil"'),
        ("X-Repo-Commit", "../../../../out/evil"),
        ("X-Repo-Commit", ".."),
        ("X-Xet-Hash", "/OUT/evil"),
    ],
)
def test_answers_that_lead_out_of_the_cache(hub: Hub, tmp_path: Path, header: str, value: str) -> None:
    out = tmp_path / "out"
    hub.headers = {header: value.replace("/OUT", str(out))}
    for request in (("user/model",), ("user/single",)):
        with pytest.raises(ValueError, match=f"answers with {header} .*, which cannot name a file"):
            fetch_model(*request)
    assert not out.exists() and hub.fetched == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_links_that_lead_out_of_the_cache(hub: Hub, tmp_path: Path) -> None:
    path = fetch_model("user/model")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    path.unlink()
    path.symlink_to(secret)
    with pytest.raises(ValueError, match=r"m-Q4_K_M.gguf was led out of the cache, to .*secret"):
        fetch_model("user/model")
    # People link the folder of a repository to another disk.
    home = tmp_path / "cache" / "models--user--model"
    fetch_model("user/model:Q8_0")
    home.rename(tmp_path / "disk")
    home.symlink_to(tmp_path / "disk")
    assert fetch_model("user/model:Q8_0").read_text() == "contents of m-Q8_0.gguf"
