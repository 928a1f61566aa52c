"""What the loopback Hub does for those who make, fill and delete repositories."""

import base64
import json
import re
from typing import Any

import yaml
from store import Blob, Commit, RefusedError, Repo, Store, is_large


class Pushing:
    """Endpoints that change a repository; `Handler` has what they use."""

    store: Store
    address: str
    body: bytes
    user: tuple[str, bool] | None
    query: dict[str, list[str]]
    send: Any
    found: Any

    def create(self) -> dict[str, Any]:
        asked = json.loads(self.body)
        if self.user is None:
            raise RefusedError(401, "Invalid username or password.")
        owner = asked.get("organization") or self.user[0]
        plain = f"{owner}/{asked['name']}"
        name = ("spaces/" if asked.get("type") == "space" else "") + plain
        self.store.check_writer(owner, self.user)
        if name in self.store.repos:
            raise RefusedError(409, "You already created this repo", url=f"{self.address}/{name}")
        self.store.repos[name] = Repo(name, asked.get("visibility") == "private")
        return {"url": f"{self.address}/{name}", "name": plain, "id": plain}

    def delete(self) -> dict[str, Any]:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or (self.user or ('',))[0]}/{asked['name']}"
        name = ("spaces/" if asked.get("type") == "space" else "") + name
        self.store.repo(name, self.user, write=True)
        del self.store.repos[name]
        return {}

    def validate_yaml(self) -> dict[str, Any] | None:
        front = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        try:
            yaml.safe_load(front.group(1) if front else "")
        except yaml.YAMLError as error:
            self.send(400, json.dumps({"errors": [{"message": str(error)}], "warnings": []}).encode())
            return None
        return {"errors": [], "warnings": []}

    def add_ref(self, kind: str, repo: str, what: str, revision: str) -> dict[str, Any]:
        found, asked = self.found(kind, repo, write=True), json.loads(self.body or b"{}")
        refs, name = (found.refs, revision) if what == "branch" else (found.tags, asked.get("tag"))
        if name in refs:
            raise RefusedError(409, f"Reference {name} already exists")
        refs[name] = found.at(asked.get("startingPoint", "main") if what == "branch" else revision).sha
        return {}

    def delete_ref(self, kind: str, repo: str, what: str, revision: str) -> dict[str, Any]:
        found = self.found(kind, repo, write=True)
        (found.refs if what == "branch" else found.tags).pop(revision)
        return {}

    def preupload(self, kind: str, repo: str, revision: str) -> dict[str, Any]:
        files = self.found(kind, repo, write="create_pr" not in self.query).at(revision).files
        return {
            "files": [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if is_large(each["path"], each["size"]) else "regular",
                    "shouldIgnore": False,
                    "oid": files[each["path"]].oid if each["path"] in files else None,
                }
                for each in json.loads(self.body)["files"]
            ]
        }

    def lfs_batch(self, repo: str, kind: str = "") -> dict[str, Any]:
        self.found(kind, repo, write=True)
        return {"transfer": "basic", "objects": [self.lfs_actions(each, kind + repo) for each in self.lfs_asked()]}

    def lfs_asked(self) -> list[dict[str, Any]]:
        return json.loads(self.body)["objects"]

    def lfs_actions(self, asked: dict[str, Any], repo: str) -> dict[str, Any]:
        oid, size = asked["oid"], asked["size"]
        if oid in self.store.large:
            return asked
        upload: dict[str, Any] = {"href": f"{self.address}/lfs/{oid}"}
        if self.store.part_size and size > self.store.part_size:
            count = -(-size // self.store.part_size)
            parts = {str(number): f"{self.address}/lfs/{oid}/{number}" for number in range(1, count + 1)}
            upload = {
                "href": f"{self.address}/lfs/{oid}/complete",
                "header": {"chunk_size": str(self.store.part_size), **parts},
            }
        verify = {"href": f"{self.address}/{repo}.git/info/lfs/objects/verify"}
        return {**asked, "actions": {"upload": upload, "verify": verify}}

    def lfs_put(self, oid: str, part: str = "") -> None:
        if part:
            self.store.parts[oid, int(part)] = self.body
        else:
            self.keep_large(oid, self.body)
        self.send(200, b"", ETag=f'"{part or oid}"')

    def lfs_complete(self, oid: str) -> dict[str, Any]:
        count = len(json.loads(self.body)["parts"])
        self.keep_large(oid, b"".join(self.store.parts.pop((oid, number)) for number in range(1, count + 1)))
        return {}

    def keep_large(self, oid: str, content: bytes) -> None:
        if Blob(content, True).oid != oid:
            raise RefusedError(400, "the content does not match its sha256")
        self.store.large[oid] = content

    def lfs_verify(self, repo: str, kind: str = "") -> dict[str, Any]:
        asked = json.loads(self.body)
        if len(self.store.large.get(asked["oid"], b"")) != asked["size"]:
            raise RefusedError(404, "object is not here")
        return {}

    def commit(self, kind: str, repo: str, revision: str) -> dict[str, Any]:
        as_request = "create_pr" in self.query
        found = self.found(kind, repo, write=not as_request)
        files, message = dict(found.at(revision).files), ""
        for line in self.body.splitlines():
            key, value = (json.loads(line)[part] for part in ("key", "value"))
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.store.large:
                    raise RefusedError(400, f"{value['path']} was not uploaded")
                files[value["path"]] = Blob(self.store.large[value["oid"]], True)
            elif value["path"] not in files:
                raise RefusedError(404, f"A file with this name doesn't exist: {value['path']}", "EntryNotFound")
            else:
                del files[value["path"]]
        branch = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in found.refs)}" if as_request else revision
        made: Commit = found.commit(branch, message, files)
        reply = {"commitUrl": f"{self.address}/{found.name}/commit/{made.sha}", "commitOid": made.sha}
        if as_request:
            reply["pullRequestUrl"] = f"{self.address}/{found.name}/discussions/{branch.rpartition('/')[2]}"
        return reply
