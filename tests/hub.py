"""A minimal model hub for the tests: repositories are folders, to download from and to push to."""

import base64
import contextlib
import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest


class Hub(http.server.ThreadingHTTPServer):
    """Repositories are identified by their name without the owner; the one named `gated` refuses access."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.url = folder, f"http://127.0.0.1:{self.server_port}"
        self.public: set[str] = set()
        self.is_refusing = False
        """Whether writing is forbidden."""
        self.downloaded: list[str] = []
        self.post_bodies: list[str] = []
        """The body of each POST request."""

    def files(self, name: str) -> list[Path]:
        return sorted(path for path in (self.folder / name).rglob("*") if path.is_file())


@contextlib.contextmanager
def serve_hub(folder: Path) -> Iterator[Hub]:
    """Serve a folder of repositories."""
    with Hub(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@contextlib.contextmanager
def push_hub(folder: Path, token: str = "hf_none") -> Iterator[Hub]:
    """Serve a hub and make this process push to it."""
    with serve_hub(folder) as server, pytest.MonkeyPatch.context() as patch:
        api = functools.partial(huggingface_hub.HfApi, endpoint=server.url, token=token or False)
        patch.setattr(huggingface_hub, "HfApi", api)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield server


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        parts = self.path.strip("/").split("?")[0].split("/")
        is_api = parts[0] == "api"
        owner, name, *subpath = parts[2:] if is_api else [*parts, "", ""][:max(len(parts), 2)]
        if name == "gated":
            return self._answer(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        if not name or not (self.server.folder / name).is_dir():
            return self._answer(404, {"X-Error-Code": "RepoNotFound"})
        repo_files = {path.relative_to(self.server.folder / name).as_posix(): path for path in self.server.files(name)}
        if is_api and "tree" in subpath:
            return self._json([{"type": "file", "path": file, "size": path.stat().st_size, "oid": "0" * 40}
                               for file, path in repo_files.items()])
        if is_api:
            return self._json({"id": f"{owner}/{name}", "sha": "0" * 40, "private": name not in self.server.public,
                               "siblings": [{"rfilename": file} for file in repo_files]})
        file = "/".join(subpath[2:])
        self.server.downloaded.append(f"{name}/{file}")
        if file not in repo_files:
            return self._answer(404, {"X-Error-Code": "EntryNotFound"})
        content = repo_files[file].read_bytes()
        self._answer(200, {"ETag": f'"{hash(content) & 0xffff:040x}"', "X-Repo-Commit": "0" * 40}, content)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.post_bodies.append(body)
        if not self.headers["Authorization"] or self.server.is_refusing:
            return self._answer(403 if self.headers["Authorization"] else 401, {})
        endpoint = self.path.split("?")[0]
        if endpoint == "/api/repos/create":
            name = json.loads(body)["name"]
            repo_folder = self.server.folder / name
            status = 409 if repo_folder.exists() else 200
            repo_folder.mkdir(exist_ok=True, parents=True)
            if status == 200 and json.loads(body)["visibility"] == "public":
                self.server.public.add(name)
            return self._json({"url": f"{self.server.url}/me/{name}"}, status)
        if endpoint == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if "/preupload/" in endpoint:
            return self._json({"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                                         for file in json.loads(body)["files"]]})
        name = endpoint.split("/")[4]
        self._commit(self.server.folder / name, [json.loads(line) for line in body.splitlines()])
        self._json({"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.server.url}/me/{name}/commit/{'0' * 40}"})

    @staticmethod
    def _commit(repo_folder: Path, rows: list[dict]) -> None:
        for row in rows:
            path = repo_folder / row["value"].get("path", ".")
            if row["key"] == "deletedFile":
                path.unlink()
            if row["key"] == "file":
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(row["value"]["content"]))

    def _json(self, value: object, status: int = 200) -> None:
        self._answer(status, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _answer(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass
