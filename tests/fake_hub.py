"""A model hub on this machine: enough of its HTTP interface for huggingface_hub to list, fetch,
make and fill repositories. It counts what is asked.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

DATE = "2024-01-01T00:00:00.000Z"


class Hub:
    """repos: name -> branch -> (commit, folder of its files); requests: the pull requests of each
    repository; gets: files fetched.

    Models go by owner/name, data sets by datasets/owner/name. What is uploaded lies in `uploaded`:
    repository -> path -> bytes, large files through `objects` (LFS); private: repositories made so.
    """

    def __init__(self):
        self.repos: dict[str, dict[str, tuple[str, Path]]] = {}
        self.parents: dict[str, list[str]] = {}  # commit -> those before it
        self.requests: dict[str, list[dict]] = {}
        self.refuse: dict[str, tuple[int, str]] = {}  # repository -> (status, error code)
        self.gets: list[str] = []
        self.uploaded: dict[str, dict[str, bytes]] = {}
        self.cards: list[str] = []  # README.md that were asked about
        self.objects: dict[str, bytes] = {}
        self.private: dict[str, bool] = {}
        self.tokens: set[str | None] = set()  # that were sent with an upload

    def add(self, repo: str, folder: Path, branch: str = "main", after: str = "") -> str:
        commit = hashlib.sha1(f"{repo} {branch}".encode()).hexdigest()
        self.repos.setdefault(repo, {})[branch] = (commit, folder)
        self.parents[commit] = [self.repos[repo][after][0]] if after else []
        return commit

    def find(self, repo: str, revision: str) -> tuple[str, Path] | None:
        branches = self.repos.get(repo, {})
        by_commit = {commit: (commit, folder) for commit, folder in branches.values()}
        return branches.get(revision) or by_commit.get(revision)


@contextmanager
def serving(hub: Hub):
    """The address of a server for `hub`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def answer(self, status: int, body: bytes = b"", **headers):
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def json(self, value):
            self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

        def do_HEAD(self):
            self.do_GET()

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_PUT(self):
            hub.objects[self.path.rpartition("/")[2]] = self.body()
            self.answer(200)

        def do_POST(self):
            path, body = unquote(urlparse(self.path).path), self.body()
            here = f"http://127.0.0.1:{self.server.server_port}"
            hub.tokens.add(self.headers.get("Authorization"))
            if path == "/api/repos/create":
                asked = json.loads(body)
                repo = f"{asked['organization']}/{asked['name']}"
                status = hub.refuse.get(repo, (409,))[0] if repo in hub.private else 200
                private = asked.get("private") or asked.get("visibility") == "private"
                hub.private.setdefault(repo, private)
                return self.answer(status, json.dumps({"url": f"{here}/{repo}"}).encode())
            if path == "/api/validate-yaml":
                hub.cards.append(json.loads(body)["content"])
                return self.json({"errors": [], "warnings": []})
            if path.endswith("/info/lfs/objects/batch"):
                objects = json.loads(body)["objects"]
                for entry in objects:
                    entry["actions"] = {"upload": {"href": f"{here}/lfs/{entry['oid']}"}}
                return self.json({"transfer": "basic", "objects": objects})
            repo, kind = re.match(
                r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path
            ).groups()
            if repo in hub.refuse:
                return self.answer(hub.refuse[repo][0], X_Error_Message=hub.refuse[repo][1])
            if kind == "preupload":
                modes = [
                    {"path": file["path"], "shouldIgnore": False, "oid": None,
                     "uploadMode": "lfs" if file["size"] > 50_000 else "regular"}
                    for file in json.loads(body)["files"]
                ]  # fmt: skip
                return self.json({"files": modes})
            files = hub.uploaded.setdefault(repo, {})
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                if line["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
            self.json({"commitUrl": f"{here}/{repo}/commit/{'0' * 40}", "commitOid": "0" * 40})

        def do_GET(self):
            path = unquote(urlparse(self.path).path)
            match = re.match(
                r"/api/(?:models/|(?=datasets/))((?:datasets/)?[^/]+/[^/]+)(?:/(tree|revision|commits|discussions)(?:/(.*))?)?$",
                path,
            )
            file = re.match(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/(refs/pr/\d+|[^/]+)/(.*)$", path)
            repo = (match or file)[1] if match or file else ""
            if repo in hub.refuse:
                status, code = hub.refuse[repo]
                return self.answer(status, X_Error_Code=code, X_Error_Message=code)
            if match and repo in hub.private:
                private = hub.private[repo]
                return self.json({"id": repo, "private": private, "sha": "0" * 40, "siblings": []})
            if repo not in hub.repos:
                return self.answer(404, X_Error_Code="RepoNotFound")
            if match and match[2] == "discussions":
                return self.json(
                    {
                        "discussions": hub.requests.get(repo, []),
                        "count": len(hub.requests.get(repo, [])),
                        "start": 0,
                    }
                )
            found = hub.find(repo, (match[3] if match else file[2]) or "main")
            if found is None:
                return self.answer(404, X_Error_Code="RevisionNotFound")
            commit, folder = found
            if file:
                target = folder / file[3]
                if not target.is_file():
                    return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
                body = target.read_bytes()
                if self.command == "GET":
                    hub.gets.append(file[3])
                return self.answer(
                    200, body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', X_Repo_Commit=commit
                )
            names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
            if match[2] == "tree":
                return self.json(
                    [
                        {
                            "type": "file",
                            "path": name,
                            "size": (folder / name).stat().st_size,
                            "oid": "0" * 40,
                        }
                        for name in names
                    ]
                )
            if match[2] == "commits":
                authors = [{"user": "someone"}]
                return self.json(
                    [
                        {"id": c, "title": "t", "message": "", "date": DATE, "authors": authors}
                        for c in [commit, *hub.parents[commit]]
                    ]
                )
            repo = repo.removeprefix("datasets/")
            return self.json(
                {
                    "id": repo,
                    "modelId": repo,
                    "sha": commit,
                    "private": False,
                    "siblings": [{"rfilename": name} for name in names],
                }
            )

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    ).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
