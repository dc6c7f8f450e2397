"""A Hub on loopback: as much of its protocol as a push needs, with files kept in memory."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeHub(ThreadingHTTPServer):
    """Repositories by name, blobs by SHA-256, and method and path of every request that came.

    So many `failing_uploads` are refused first; `metadata_errors` are what it says against a card's metadata.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos = {}
        self.blobs = {}
        self.requests = []
        self.tokens = set()
        self.failing_uploads = 0
        self.allow = True
        self.metadata_errors = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()

    def uploads(self) -> int:
        return sum(method == "PUT" for method, _ in self.requests)


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Says nothing."""

    def do_GET(self):
        self._note()
        name = self._repo()
        repo = self.server.repos.get(name or "")
        if repo is None:
            self._json({"error": "Repository not found"}, 404)
        elif "/tree/" in self.path:
            entry = {"type": "file", "oid": "0" * 40}
            self._json([entry | {"path": path, "size": len(data)} for path, data in repo["files"].items()])
        else:
            files = [{"rfilename": path} for path in repo["files"]]
            self._json({"id": name, "sha": "0" * 40, "siblings": files, "private": repo["private"]})

    def do_PUT(self):
        body = self._note()
        if self.server.failing_uploads:
            self.server.failing_uploads -= 1
            self._json({"error": "try later"}, 400)
            return
        self.server.blobs[self.path.rsplit("/", 1)[1]] = body
        self._json({})

    def do_POST(self):
        self._json(*self._done(self._note()))

    def _done(self, body):
        """Does what was posted; the answer and its status."""
        if not self.server.allow:
            return {"error": "You don't have the rights to create a model under this namespace"}, 403
        if "/commit/" in self.path:
            return self._commit(body), 200
        given = json.loads(body)
        if self.path == "/api/repos/create":
            return self._create(given)
        if self.path == "/api/validate-yaml":
            errors = [{"message": message} for message in self.server.metadata_errors]
            return {"errors": errors, "warnings": []}, 400 if errors else 200
        if "/preupload/" in self.path:
            return {"files": [
                {"path": file["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular"}
                for file in given["files"]
            ]}, 200  # fmt: skip
        return {"transfer": "basic", "objects": list(map(self._lfs, given["objects"]))}, 200

    def _create(self, given):
        """Of a repository; the answer and its status."""
        name = f"{given['organization']}/{given['name']}"
        status = 409 if name in self.server.repos else 200
        private = given.get("private") or given.get("visibility") == "private"
        new = {"private": private, "files": {}, "commits": []}
        self.server.repos.setdefault(name, new | ({"sdk": given["sdk"]} if given.get("sdk") else {}))
        return {"url": f"{self.server.url}/{name}"}, status

    def _lfs(self, given):
        """Where to send a large file, unless it is there."""
        if given["oid"] in self.server.blobs:
            return given
        return given | {"actions": {"upload": {"href": f"{self.server.url}/blobs/{given['oid']}"}}}

    def _commit(self, body):
        """Does what its lines say; the answer."""
        name = self._repo() or ""
        repo = self.server.repos[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repo["commits"].append(value["summary"])
            elif line["key"] == "file":
                repo["files"][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo["files"][value["path"]] = self.server.blobs[value["oid"]]
            else:  # deletedFile
                del repo["files"][value["path"]]
        return {"commitUrl": f"{self.server.url}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40, "hookOutput": ""}

    def _repo(self):
        """The name of the repository that is asked about, or None."""
        return next((name for name in self.server.repos if f"/{name}/" in f"{self.path.split('?')[0]}/"), None)

    def _note(self):
        """Remembers the request; its bytes."""
        self.server.requests.append((self.command, self.path))
        self.server.tokens.add(self.headers.get("Authorization", ""))
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, value, status=200):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
