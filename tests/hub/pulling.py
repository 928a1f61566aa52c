"""What the loopback Hub answers to those who look and download."""

import re
from typing import Any
from urllib.parse import parse_qs

from store import Blob, RefusedError, Repo, Store


class Pulling:
    """Endpoints that change nothing in a repository; `Handler` has what they use."""

    store: Store
    address: str
    body: bytes
    user: tuple[str, bool] | None
    query: dict[str, list[str]]
    url: Any
    headers: Any
    send: Any
    send_json: Any

    def found(self, kind: str, repo: str, write: bool = False) -> Repo:
        return self.store.repo(("spaces/" if kind.startswith("spaces") else "") + repo, self.user, write)

    def whoami(self) -> dict[str, Any]:
        if self.user is None:
            raise RefusedError(401, "Invalid username or password.")
        return {"name": self.user[0], "type": "user", "orgs": []}

    def refs(self, kind: str, repo: str) -> dict[str, Any]:
        found = self.found(kind, repo)

        def listed(refs: dict[str, str], prefix: str) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"{prefix}{name}", "targetCommit": sha} for name, sha in refs.items()]

        return {
            "branches": listed(found.refs, "refs/heads/"),
            "tags": listed(found.tags, "refs/tags/"),
            "converts": [],
        }

    def info(self, kind: str, repo: str, revision: str = "main") -> dict[str, Any]:
        found = self.found(kind, repo)
        commit = found.at(revision)
        siblings = [{"rfilename": name} for name in sorted(commit.files)]
        return {
            "id": repo,
            "modelId": repo,
            "sha": commit.sha,
            "private": found.private,
            "siblings": siblings,
            "tags": [],
        }

    @staticmethod
    def describe(path: str, blob: Blob) -> dict[str, Any]:
        size = len(blob.content)
        lfs = {"lfs": {"oid": blob.oid, "size": size, "pointerSize": 130}} if blob.is_large else {}
        return {"type": "file", "path": path, "size": size, "oid": blob.oid[:40], **lfs}

    def tree(self, kind: str, repo: str, revision: str, path: str = "") -> dict[str, Any] | None:
        files = self.found(kind, repo).at(revision).files
        prefix = f"{path}/" if path else ""
        entries: dict[str, dict[str, Any]] = {}
        for name, blob in sorted(files.items()):
            if not name.startswith(prefix):
                continue
            parts = name.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                folder = prefix + "/".join(parts[:depth])
                entries.setdefault(folder, {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0})
            entries[name] = self.describe(name, blob)
        if self.query.get("recursive", ["False"])[0].lower() != "true":
            entries = {name: entry for name, entry in entries.items() if "/" not in name.removeprefix(prefix)}
        if path and not entries:
            raise RefusedError(404, f"{path} does not exist", "EntryNotFound")
        listed, start = list(entries.values()), int(self.query.get("cursor", ["0"])[0])
        end = start + self.store.page_size
        more = {}
        if end < len(listed):
            recursive = self.query.get("recursive", ["False"])[0]
            more["Link"] = f'<{self.address}{self.url.path}?recursive={recursive}&cursor={end}>; rel="next"'
        self.send_json(listed[start:end], **more)
        return None

    def paths_info(self, kind: str, repo: str, revision: str) -> list[dict[str, Any]]:
        files = self.found(kind, repo).at(revision).files
        asked = parse_qs(self.body.decode()).get("paths", [])
        return [self.describe(path, files[path]) for path in asked if path in files]

    def resolve(self, repo: str, revision: str, path: str, kind: str = "") -> None:
        commit = self.found(kind, repo).at(revision)
        if path not in commit.files:
            raise RefusedError(404, f"{path} does not exist", "EntryNotFound", X_Repo_Commit=commit.sha)
        blob = commit.files[path]
        if blob.is_large:
            # Another name of this machine, so that the client takes it for another host, as a CDN is.
            away = self.address.replace("127.0.0.1", "localhost")
            size = str(len(blob.content))
            linked = {"X_Linked_ETag": f'"{blob.oid}"', "X_Linked_Size": size, "X_Repo_Commit": commit.sha}
            self.send(302, b"", Location=f"{away}/cdn/{blob.oid}", **linked)
        else:
            self.send_range(blob.content, ETag=f'"{blob.oid}"', X_Repo_Commit=commit.sha)

    def cdn(self, oid: str) -> None:
        if oid not in self.store.large:
            raise RefusedError(404, "no such object")
        self.send_range(self.store.large[oid], ETag=f'"{oid}"')

    def send_range(self, content: bytes, **headers: str) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self.send(200, content, Accept_Ranges="bytes", **headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        if first > last:
            raise RefusedError(416, "Range Not Satisfiable", Content_Range=f"bytes */{len(content)}")
        self.send(206, content[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(content)}", **headers)
