"""The loopback Hub speaks with the real client: what is pushed is what comes back, commit by commit."""

import hashlib

SETUP = """
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import *
api = HfApi()
api.create_repo("alice/things")
def put(name, content, **options):
    return api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id="alice/things", **options).oid
"""


def test_who_is_asking(client):
    assert client("from huggingface_hub import whoami; answer(whoami()['name'])", token="hf_bob") == "bob"
    assert "Invalid" in client("from huggingface_hub import whoami; whoami()", token="hf_nobody", fails=True)


def test_files_commits_branches_and_tags(client, hub):
    found = client(
        SETUP
        + """
first = put("notes/a.txt", b"one")
second = put("notes/a.txt", b"two")
api.create_tag("alice/things", tag="v1", revision=first)
api.create_branch("alice/things", branch="side")
third = put("b.txt", b"side", revision="side")
read = lambda revision, name="notes/a.txt": open(hf_hub_download("alice/things", name, revision=revision)).read()
refs = api.list_repo_refs("alice/things")
answer({
    "read": [read(None), read("v1"), read(first), read(second), read("side", "b.txt")],
    "branches": sorted(ref.name for ref in refs.branches), "tags": [ref.name for ref in refs.tags],
    "shas": [api.model_info("alice/things").sha == second, api.model_info("alice/things", revision="v1").sha == first],
})
"""
    )
    assert found["read"] == ["two", "one", "one", "two", "side"]
    assert (found["branches"], found["tags"], found["shas"]) == (["main", "side"], ["v1"], [True, True])
    assert hub.repos["alice/things"].files == {"notes/a.txt": b"two"}


def test_tree_in_pages_paths_and_deletion(client, hub):
    found = client(
        SETUP
        + """
from huggingface_hub import CommitOperationAdd, CommitOperationDelete
adds = [CommitOperationAdd(f"folder/{i}.txt", str(i).encode()) for i in range(12)]
api.create_commit("alice/things", [*adds, CommitOperationAdd("big.bin", bytes(3000))], commit_message="many")
files = api.list_repo_files("alice/things")
infos = api.get_paths_info("alice/things", ["big.bin", "folder/3.txt", "no.txt"])
top = [each.path for each in api.list_repo_tree("alice/things")]
api.create_commit("alice/things", [CommitOperationDelete("folder/3.txt")], commit_message="less")
answer([len(files), [[i.path, i.size, i.lfs and i.lfs.sha256] for i in infos], top,
        len(api.list_repo_files("alice/things"))])
api.delete_repo("alice/things")
"""
    )
    sha = hashlib.sha256(bytes(3000)).hexdigest()
    assert found == [13, [["big.bin", 3000, sha], ["folder/3.txt", 1, None]], ["big.bin", "folder"], 12]
    # 12 files, one large, one folder: three pages of five.
    assert hub.count("GET .*/tree/main") >= 3
    assert hub.repos == {}


def test_large_files_in_parts_and_not_twice(client, hub):
    hub.part_size = 1000
    content = bytes(range(256)) * 10
    found = client(
        SETUP
        + f"""
content = {content!r}
put("a.bin", content)
put("copy.bin", content)
answer([open(hf_hub_download("alice/things", name), "rb").read() == content for name in ("a.bin", "copy.bin")])
"""
    )
    assert found == [True, True]
    assert hub.count("PUT /lfs/") == 3
    assert hub.count("GET /cdn/") == 1 or hub.count("GET /cdn/") == 2


def test_a_cut_download_goes_on_where_it_stopped(client, hub):
    hub.cut("GET", "/cdn/", after=1000)
    content = bytes(range(256)) * 10
    found = client(
        SETUP
        + f"""
put("a.bin", {content!r})
answer(open(hf_hub_download("alice/things", "a.bin"), "rb").read() == {content!r})
"""
    )
    assert found is True
    assert hub.count("GET /cdn/") == 2


def test_a_pull_request_leaves_main_alone(client, hub):
    client(SETUP + "put('a.txt', b'one'); put('a.txt', b'two', create_pr=True)")
    repo = hub.repos["alice/things"]
    assert repo.files == {"a.txt": b"one"}
    assert repo.at("refs/pr/1").files["a.txt"].content == b"two"


def test_what_is_refused(client, hub):
    names = client(
        SETUP
        + """
def name(call):
    try: call()
    except HfHubHTTPError as error: return [type(error).__name__, error.response.status_code]
def write(token):
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="alice/things", token=token)
put("a.txt", b"one")
private = api.create_repo("alice/secret", private=True)
answer([
    name(lambda: api.create_repo("alice/things")),
    name(lambda: api.create_repo("bob/things")),
    name(lambda: write("hf_bob")),
    name(lambda: write("hf_alice_reads")),
    name(lambda: api.model_info("alice/secret", token="hf_bob")),
    name(lambda: api.model_info("alice/secret", token=False)),
    name(lambda: hf_hub_download("alice/things", "no.txt")),
    name(lambda: hf_hub_download("alice/things", "a.txt", revision="no")),
])
"""
    )
    assert names == [
        ["HfHubHTTPError", 409],
        ["HfHubHTTPError", 403],
        ["HfHubHTTPError", 403],
        ["HfHubHTTPError", 403],
        ["RepositoryNotFoundError", 404],
        ["RepositoryNotFoundError", 401],
        ["RemoteEntryNotFoundError", 404],
        ["RevisionNotFoundError", 404],
    ]
    assert hub.repos["alice/secret"].private
