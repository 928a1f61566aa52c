"""What the loopback Hub keeps: repositories with their commits, large files, tokens, and faults to come."""

import hashlib
import re
import threading
from dataclasses import dataclass, field
from typing import Any

LARGE_FILE, LARGE_SUFFIXES = 1_000_000, (".safetensors", ".bin", ".png", ".npz", ".onnx")


class RefusedError(Exception):
    """An answer other than success: status, and what the client reads from its headers."""

    def __init__(self, status: int, message: str, code: str = "", url: str = "", **headers: str) -> None:
        super().__init__(message)
        self.body = {"error": message, **({"url": url} if url else {})}
        self.status, self.message, self.headers = status, message, headers
        if code:
            self.headers["X-Error-Code"] = code
        self.headers["X-Error-Message"] = message


@dataclass(frozen=True)
class Blob:
    """One version of a file; a large one has its sha256 as oid, another git's sha1."""

    content: bytes
    is_large: bool

    @property
    def oid(self) -> str:
        if self.is_large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    sha: str
    message: str
    files: dict[str, Blob]


@dataclass
class Repo:
    """A repository: commits by sha, and what branches and tags point to."""

    name: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", "initial commit", {})

    @property
    def owner(self) -> str:
        return self.name.removeprefix("spaces/").partition("/")[0]

    def at(self, revision: str) -> Commit:
        sha = self.refs.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def commit(self, branch: str, message: str, files: dict[str, Blob]) -> Commit:
        described = f"{self.name}{branch}{message}{self.refs.get(branch)}{[(n, b.oid) for n, b in files.items()]}"
        made = Commit(hashlib.sha1(described.encode()).hexdigest(), message, files)
        self.commits[made.sha] = made
        self.refs[branch] = made.sha
        return made

    @property
    def files(self) -> dict[str, bytes]:
        """The files on main."""
        return {name: blob.content for name, blob in self.at("main").files.items()}


@dataclass
class Fault:
    """Something that goes wrong: a status, or a connection cut after some bytes of the body."""

    method: str
    path: str
    times: int
    status: int | None = None
    cut_after: int | None = None


@dataclass
class Store:
    """All that the server keeps between requests."""

    tokens: dict[str, tuple[str, bool]] = field(
        default_factory=lambda: {
            "hf_alice": ("alice", True),
            "hf_alice_reads": ("alice", False),
            "hf_bob": ("bob", True),
        }
    )
    repos: dict[str, Repo] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    part_size: int | None = None
    page_size: int = 5
    is_down: bool = False
    address: str = ""
    lock: Any = field(default_factory=threading.RLock)

    def fail(self, method: str, path: str, status: int, times: int = 1) -> None:
        """Answer the next requests whose path matches with a status."""
        self.faults.append(Fault(method, path, times, status=status))

    def cut(self, method: str, path: str, after: int, times: int = 1) -> None:
        """Cut the connection of the next requests whose path matches after some bytes of the body."""
        self.faults.append(Fault(method, path, times, cut_after=after))

    def fault_of(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def count(self, pattern: str) -> int:
        """How many requests ("METHOD /path") matched."""
        return sum(re.search(pattern, line) is not None for line in self.log)

    # ---- who may do what --------------------------------------------------------------------

    def user_of(self, authorization: str | None) -> tuple[str, bool] | None:
        if not authorization:
            return None
        token = authorization.removeprefix("Bearer ")
        if token not in self.tokens:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return self.tokens[token]

    def repo(self, name: str, user: tuple[str, bool] | None, write: bool = False) -> Repo:
        found = self.repos.get(name)
        hidden = found is not None and found.private and (user is None or user[0] != found.owner)
        if found is None or hidden:
            raise RefusedError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if write:
            self.check_writer(found.owner, user)
        return found

    def check_writer(self, owner: str, user: tuple[str, bool] | None) -> None:
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        if user[0] != owner or not user[1]:
            raise RefusedError(403, f"You don't have the rights to write to {owner}")


def is_large(path: str, size: int) -> bool:
    """Whether the Hub would keep a file outside of git."""
    return size >= LARGE_FILE or path.endswith(LARGE_SUFFIXES)
