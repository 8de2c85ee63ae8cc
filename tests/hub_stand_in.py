"""A stand-in for the Hugging Face Hub on 127.0.0.1: what huggingface_hub 2.4 and datasets 5.2 ask for, LFS included.

It keeps repositories as commits of whole trees, answers with the real Hub's headers and error codes, logs every
request, can be told to fail, and ends with an error if it was asked for what it does not know. Clients are
subprocesses, because `HF_ENDPOINT` is read when huggingface_hub is imported: see `HubStandIn.run`.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
LFS_SUFFIXES = (".safetensors", ".parquet", ".pt", ".pth", ".bin", ".npy", ".tif", ".png")
KINDS = {"models": "", "datasets": "datasets/"}
ACTIONS = {  # below /api/models/org/name, and the methods of each
    "revision": ("GET", "HEAD"),
    "preupload": ("POST",),
    "commit": ("POST",),
    "branch": ("POST",),
    "tree": ("GET",),
    "paths-info": ("POST",),
    "refs": ("GET",),
}
WRITE_TOKEN = "hf_standInWriteToken0123456789"
READ_TOKEN = "hf_standInReadToken0123456789"
BLOCKED = "import sys; sys.modules['sgma_hf'] = None  # as on a machine that has never seen the package\n"
# The files of code that travel with a model and its processor.
CODE = {
    f"{name}_sgma.py"
    for name in (
        "configuration decode_head fusion image_processing image_transforms losses modalities modeling "
        "outputs pipeline post_processing sampling saving stems"
    ).split()
}


class HttpError(Exception):
    """An answer of the Hub that is no success."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass
class StoredFile:
    """A file of one commit, with the name that its content has in git or LFS."""

    content: bytes
    is_lfs: bool

    @property
    def oid(self) -> str:
        if self.is_lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repository:
    """Branches that point to commits; a commit is a dict from path to file."""

    private: bool
    commits: dict[str, dict[str, StoredFile]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, tree: dict[str, StoredFile], message: str) -> str:
        identity = json.dumps([len(self.commits), message, {path: tree[path].oid for path in sorted(tree)}])
        oid = hashlib.sha1(identity.encode()).hexdigest()
        self.commits[oid] = tree
        self.messages.append(message)
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str:
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise HttpError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Contents by path."""
        return {path: file.content for path, file in self.commits[self.resolve(revision)].items()}

    def history(self) -> list[dict[str, bytes]]:
        """Contents of every commit, oldest first, without the empty one a repository begins with."""
        return [self.files(oid) for oid in self.commits][1:]


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose "METHOD path" the pattern finds, after `skip` of them."""

    pattern: str
    times: int
    skip: int = 0
    status: int | None = None  # answer so, with `headers`
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None  # read so many bytes of the body, then close the connection
    truncate_to: int | None = None  # send so many bytes of the answer, under its full Content-Length
    flip_byte: int | None = None  # invert this byte of the answer


class HubStandIn:
    """The server's state, and the ways tests look at it and disturb it. Use as a context manager."""

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.tokens = {WRITE_TOKEN: "write", READ_TOKEN: "read"}
        self.requests: list[str] = []
        self.unknown: list[str] = []  # requests that it has no answer to
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.cdn = f"http://localhost:{self._server.server_port}/cdn"  # another host than the Hub's, as in reality

    def __enter__(self) -> "HubStandIn":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, exception_type, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()
        if exception_type is None:
            assert not self.unknown, f"The stand-in does not know {sorted(set(self.unknown))}"

    def model(self, repo_id: str) -> Repository:
        return self.repositories["models", repo_id]

    def dataset(self, repo_id: str) -> Repository:
        return self.repositories["datasets", repo_id]

    def create(self, kind: str, repo_id: str, *, private: bool = False) -> Repository:
        repository = Repository(private)
        repository.commit("main", {}, "initial commit")
        self.repositories[kind, repo_id] = repository
        return repository

    def put(self, repo_id: str, files: dict[str, bytes], *, kind: str = "models", message: str = "put") -> str:
        """Commit files directly, without a client: for repositories that no honest client would make."""
        repository = self.repositories.get((kind, repo_id)) or self.create(kind, repo_id)
        tree = dict(repository.commits[repository.branches["main"]])
        tree |= {path: StoredFile(content, path.endswith(LFS_SUFFIXES)) for path, content in files.items()}
        return repository.commit("main", tree, message)

    def fail(self, pattern: str, status: int, *, times: int = 1, skip: int = 0, **headers: str) -> None:
        """Answer the next requests that match with an error; headers with "_" for "-"."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(pattern, times, skip, status=status, headers=headers))

    def disturb(self, pattern: str, *, times: int = 1, **what: int) -> None:
        """Drop, truncate or corrupt the next requests that match; see `Fault`."""
        self.faults.append(Fault(pattern, times, **what))

    def counted(self, pattern: str) -> int:
        """How many requests so far match."""
        return sum(bool(re.search(pattern, request)) for request in self.requests)

    def take_fault(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def environment(self, home: Path, *, token: str | None = WRITE_TOKEN, **changes: str) -> dict[str, str]:
        """Environment of a client whose cache is `home`; HF_HUB_OFFLINE="1" in `changes` cuts its network."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), kept.get("PYTHONPATH", "")])
        return kept | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DEBUG": "0",
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            **({"HF_TOKEN": token} if token else {}),
            **changes,
        }

    def run(
        self,
        code: str,
        home: Path,
        *,
        package: bool = True,
        succeeds: bool = True,
        timeout: float = 240,
        token: str | None = WRITE_TOKEN,
        **changes: str,
    ) -> subprocess.CompletedProcess:
        """Run Python code as a client in a fresh process, with or without the package, in `home`."""
        home.mkdir(parents=True, exist_ok=True)
        run = subprocess.run(
            [sys.executable, "-c", ("" if package else BLOCKED) + textwrap.dedent(code)],
            capture_output=True,
            text=True,
            env=self.environment(home, token=token, **changes),
            cwd=home,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
        )
        if succeeds:
            assert run.returncode == 0, f"{run.stdout[-2000:]}\n{run.stderr[-6000:]}"
        return run


class _Handler(BaseHTTPRequestHandler):
    """Speaks the endpoints; one object per connection."""

    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def do_GET(self):
        self._handle()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_GET

    def _handle(self) -> None:
        split = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(split.query))
        # A quoted slash belongs to one segment (a branch name), so quoting is undone segment by segment.
        self.segments = [urllib.parse.unquote(part) for part in split.path.split("/")[1:]]
        request = f"{self.command} {urllib.parse.unquote(split.path)}"
        with self.hub.lock:
            self.hub.requests.append(request)
        self.fault = self.hub.take_fault(request)
        length = int(self.headers.get("Content-Length") or 0)
        if self.fault and self.fault.drop_after is not None:
            self.rfile.read(min(length, self.fault.drop_after))
            self.close_connection = True
            return
        self.body = self.rfile.read(length) if length else self._read_chunks()
        try:
            if self.fault and self.fault.status is not None:
                raise HttpError(self.fault.status, f"injected {self.fault.status}")
            with self.hub.lock:
                self._route()
        except HttpError as error:
            headers = dict(self.fault.headers) if self.fault else {}
            if error.code:
                headers["X-Error-Code"] = error.code
            headers["X-Error-Message"] = error.message
            self._send(error.status, json.dumps({"error": error.message}).encode(), headers)
        except OSError:  # the client went away
            raise
        except Exception as error:
            self.hub.unknown.append(f"{request}: {error!r}")
            self._send(500)

    def _unknown(self, what: str | None = None) -> HttpError:
        what = what or f"{self.command} {self.path}"
        self.hub.unknown.append(what)
        return HttpError(404, f"The stand-in does not know {what}")

    def _read_chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return b""
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        fault = self.fault
        length = len(body)
        if fault and fault.flip_byte is not None and body:
            body = bytearray(body)
            body[fault.flip_byte] ^= 0xFF
        self.send_response(status)
        given = {"Content-Length": str(length), "Content-Type": "application/json"} | (headers or {})
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            cut = fault is not None and fault.truncate_to is not None
            self.wfile.write(bytes(body[: fault.truncate_to]) if cut else bytes(body))
            if cut:
                self.close_connection = True

    def _send_json(self, value, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode())

    def _json(self):
        return json.loads(self.body or b"{}")

    def _role(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            return None
        if token not in self.hub.tokens:
            raise HttpError(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def _must_write(self) -> None:
        role = self._role()
        if role is None:
            raise HttpError(401, "Invalid username or password.")
        if role != "write":
            raise HttpError(403, "This token has no write permission")

    def _repository(self, kind: str, repo_id: str) -> Repository:
        repository = self.hub.repositories.get((kind, repo_id))
        role = self._role()
        if repository is None or (repository.private and role is None):
            # As the real Hub: without a token nobody learns whether a private repository exists.
            raise HttpError(404 if role else 401, "Repository not found", "RepoNotFound")
        return repository

    def _route(self) -> None:
        segments = self.segments
        if segments[0] == "api":
            return self._route_api(segments[1:])
        if segments[0] == "cdn":
            return self._send_content(self.hub.lfs_objects[segments[1]], {})
        if segments[0] == "lfs":
            return self._route_lfs(*segments[1:3])
        kind = "datasets" if segments[0] == "datasets" else "models"
        rest = segments[1:] if kind == "datasets" else segments
        if rest[2:] == ["info", "lfs", "objects", "batch"]:
            return self._lfs_batch(kind, "/".join(rest[:2]).removesuffix(".git"))
        if len(rest) > 4 and rest[2] == "resolve":
            return self._resolve(kind, "/".join(rest[:2]), rest[3], "/".join(rest[4:]))
        raise self._unknown()

    def _route_api(self, segments: list[str]) -> None:
        if segments == ["repos", "create"]:
            return self._create_repository()
        if segments == ["validate-yaml"]:
            return self._validate_yaml()
        if segments == ["whoami-v2"]:
            return self._send_json(
                {"name": "stand-in", "type": "user", "auth": {"accessToken": {"role": self._role()}}}
            )
        kind, repo_id, rest = segments[0], "/".join(segments[1:3]), segments[3:]
        action = rest[0] if rest else "revision"
        if kind not in KINDS or self.command not in ACTIONS.get(action, ()):
            raise self._unknown()
        repository = self._repository(kind, repo_id)
        revision = rest[1] if len(rest) > 1 else "main"
        if action == "revision":
            return self._send_info(kind, repo_id, repository, revision)
        if action == "preupload":
            self._must_write()
            tree = repository.commits[repository.resolve(revision)]
            return self._send_json({"files": [_upload_mode(item, tree) for item in self._json()["files"]]})
        if action == "commit":
            self._must_write()
            return self._commit(kind, repo_id, repository, revision)
        if action == "branch":
            self._must_write()
            if revision in repository.branches:
                raise HttpError(409, "Reference already exists")
            start = self._json().get("startingPoint", "main")
            repository.branches[revision] = repository.resolve(start)
            return self._send_json({})
        if action == "tree":
            return self._send_json(_list_tree(repository, revision, "/".join(rest[2:]), "recursive" in self.query))
        if action == "paths-info":
            return self._send_paths_info(repository, revision)
        branches = [  # action is "refs"
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
            for name, oid in repository.branches.items()
        ]
        return self._send_json({"branches": branches, "converts": [], "tags": []})

    def _create_repository(self) -> None:
        self._must_write()
        wanted = self._json()
        kind = f"{wanted.get('type') or 'model'}s"
        repo_id = f"{wanted.get('organization') or 'stand-in'}/{wanted['name']}"
        url = f"{self.hub.endpoint}/{KINDS[kind]}{repo_id}"
        if (kind, repo_id) in self.hub.repositories:
            return self._send_json({"error": "You already created this repo", "url": url}, status=409)
        self.hub.create(kind, repo_id, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return self._send_json({"url": url, "name": repo_id})

    def _validate_yaml(self) -> None:
        import yaml

        match = re.match(r"---\n(.*?)\n---", self._json()["content"], flags=re.DOTALL)
        errors = []
        try:
            head = yaml.safe_load(match[1]) if match else {}
            for entry in head.get("model-index") or []:
                for result in entry["results"]:
                    _ = result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]
                    errors += [
                        {"message": f"model-index: {metric} has no number"}
                        for metric in result["metrics"]
                        if not isinstance(metric["value"], int | float)
                    ]
        except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            errors.append({"message": f"invalid metadata: {error!r}"})
        self._send_json({"errors": errors, "warnings": []}, status=400 if errors else 200)

    def _send_info(self, kind: str, repo_id: str, repository: Repository, revision: str) -> None:
        oid = repository.resolve(revision)
        siblings = [{"rfilename": path} for path in sorted(repository.commits[oid])]
        info = {"id": repo_id, "sha": oid, "private": repository.private, "siblings": siblings, "tags": []}
        self._send_json(info | {"downloads": 0, "likes": 0, "disabled": False, "gated": False})

    def _commit(self, kind: str, repo_id: str, repository: Repository, revision: str) -> None:
        tree = dict(repository.commits[repository.resolve(revision)])
        message = ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
                parent = value.get("parentCommit")
                if parent and parent != repository.branches.get(revision):
                    raise HttpError(412, "A commit has happened since. Please refresh and try again.")
            elif entry["key"] == "file":
                tree[_checked_path(value["path"])] = StoredFile(base64.b64decode(value["content"]), False)
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.lfs_objects:
                    raise HttpError(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                tree[_checked_path(value["path"])] = StoredFile(self.hub.lfs_objects[value["oid"]], True)
            elif entry["key"] == "deletedFile":
                if tree.pop(value["path"], None) is None:
                    raise HttpError(404, "A file with this name doesn't exist", "EntryNotFound")
            elif entry["key"] == "deletedFolder":
                tree = {path: file for path, file in tree.items() if not path.startswith(value["path"])}
            else:
                raise self._unknown(f"the operation {entry['key']} of a commit")
        oid = repository.commit(revision, tree, message)
        url = f"{self.hub.endpoint}/{KINDS[kind]}{repo_id}/commit/{oid}"
        self._send_json({"success": True, "commitUrl": url, "commitOid": oid})

    def _lfs_batch(self, kind: str, repo_id: str) -> None:
        self._must_write()
        self._repository(kind, repo_id)
        objects = []
        for wanted in self._json()["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.lfs_objects:
                base = f"{self.hub.endpoint}/lfs/{wanted['oid']}"
                entry["actions"] = {"upload": {"href": base}, "verify": {"href": f"{base}/verify"}}
            objects.append(entry)
        self._send_json({"transfer": "basic", "objects": objects})

    def _route_lfs(self, oid: str, verify: str | None = None) -> None:
        if verify:
            self._must_write()
            if len(self.hub.lfs_objects.get(oid, b"")) != self._json()["size"]:
                raise HttpError(404, "The object was not uploaded")
            return self._send_json({})
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HttpError(400, "The content is not what its SHA-256 says")
        self.hub.lfs_objects[oid] = self.body
        return self._send(200)

    def _resolve(self, kind: str, repo_id: str, revision: str, path: str) -> None:
        repository = self._repository(kind, repo_id)
        commit = repository.resolve(revision)
        file = repository.commits[commit].get(path)
        if file is None:
            raise HttpError(404, "Entry not found", "EntryNotFound")
        headers = {"ETag": f'"{file.oid}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not file.is_lfs:
            return self._send_content(file.content, headers)
        self.hub.lfs_objects[file.oid] = file.content
        headers |= {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(len(file.content))}
        return self._send(302, b"", headers | {"Location": f"{self.hub.cdn}/{file.oid}"})

    def _send_content(self, content: bytes, headers: dict[str, str]) -> None:
        headers = {"Content-Type": "application/octet-stream"} | headers
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not span:
            return self._send(200, content, headers)
        start, stop = int(span[1]), min(int(span[2] or len(content) - 1) + 1, len(content))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return self._send(206, content[start:stop], headers)

    def _send_paths_info(self, repository: Repository, revision: str) -> None:
        form = urllib.parse.parse_qs(self.body.decode())
        paths = self._json()["paths"] if self.body.startswith(b"{") else form.get("paths", [])
        entries = _list_tree(repository, revision, "", True)
        self._send_json([entry for entry in entries if entry["path"] in paths])


def _checked_path(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise HttpError(400, f"Invalid path {path!r}")
    return path


def _upload_mode(item: dict, tree: dict[str, StoredFile]) -> dict:
    path = item["path"]
    mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
    oid = tree[path].oid if path in tree else None
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}


def _list_tree(repository: Repository, revision: str, folder: str, recursive: bool) -> list[dict]:
    tree = repository.commits[repository.resolve(revision)]
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict] = {}
    for path, file in sorted(tree.items()):
        if not path.startswith(prefix):
            continue
        parents = path.removeprefix(prefix).split("/")[:-1]
        for depth in range(1, len(parents) + 1) if recursive else range(1, min(len(parents), 1) + 1):
            name = prefix + "/".join(parents[:depth])
            oid = hashlib.sha1(name.encode()).hexdigest()
            entries[name] = {"type": "directory", "path": name, "oid": oid, "size": 0}
        if recursive or not parents:
            entry = {"type": "file", "path": path, "oid": file.oid, "size": len(file.content)}
            if file.is_lfs:
                entry["lfs"] = {"oid": file.oid, "size": len(file.content), "pointerSize": 134}
            entries[path] = entry
    if folder and not entries:
        raise HttpError(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
    return list(entries.values())


@contextlib.contextmanager
def running_hub() -> Iterator[HubStandIn]:
    """A running stand-in."""
    with HubStandIn() as hub:
        yield hub
