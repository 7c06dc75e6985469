"""What people do with huggingface_hub, of any version: files, whole repositories, and what is told of them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import (
    HfApi,
    HfFileSystem,
    get_safetensors_metadata,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from originals import ORIGINALS, expect_same

MODEL, DATA = "team/plain", "team/data"
api = HfApi()
files = sorted(path.relative_to(ORIGINALS / MODEL).as_posix() for path in (ORIGINALS / MODEL).rglob("*.*"))
shard = next(name for name in files if name.endswith(".safetensors"))

# Files, each way that there is.
expect_same(snapshot_download(MODEL), MODEL)
expect_same(hf_hub_download(MODEL, shard), MODEL, shard)
assert try_to_load_from_cache(MODEL, shard)
with TemporaryDirectory() as folder:
    expect_same(snapshot_download(MODEL, local_dir=folder), MODEL)
    expect_same(hf_hub_download(MODEL, "sub/words.txt", local_dir=f"{folder}/one"), MODEL, "sub/words.txt")
expect_same(snapshot_download(DATA, repo_type="dataset"), f"datasets/{DATA}")

# What is told of a repository.
info = api.model_info(MODEL, files_metadata=True)
sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
assert sizes == {name: (ORIGINALS / MODEL / name).stat().st_size for name in files}, sizes
commit = info.sha
assert commit
assert api.model_info(MODEL, expand=["safetensors", "sha"]).safetensors
assert api.dataset_info(DATA).sha
tree = [entry.path for entry in api.list_repo_tree(MODEL, recursive=True) if hasattr(entry, "size")]
assert set(files) <= set(tree), tree
assert sorted(api.list_repo_files(MODEL)) == files
assert [entry.path for entry in api.get_paths_info(MODEL, ["config.json", "absent.txt"])] == ["config.json"]
assert [branch.name for branch in api.list_repo_refs(MODEL).branches] == ["main"]
assert api.list_repo_commits(MODEL)[0].commit_id == commit
assert [model.id for model in api.list_models(author="team", search="plain")] == [MODEL]
assert DATA in [data.id for data in api.list_datasets(author="team", search="data")]
api.auth_check(MODEL)
assert get_safetensors_metadata(MODEL).sharded

# What is there and what is not.
assert api.repo_exists(MODEL)
assert not api.repo_exists("team/absent-model")
assert api.file_exists(MODEL, shard)
assert not api.file_exists(MODEL, "absent.txt")
assert api.revision_exists(MODEL, commit)
assert not api.revision_exists(MODEL, "absent-branch")
for arguments, error in (
    ((MODEL, "absent.txt", None), EntryNotFoundError),
    (("team/absent-model", "config.json", None), RepositoryNotFoundError),
    ((MODEL, "config.json", "absent-branch"), RevisionNotFoundError),
):
    repository, name, revision = arguments
    try:
        hf_hub_download(repository, name, revision=revision)
    except error:
        continue
    raise AssertionError(f"no {error.__name__}")

# As a file system.
remote = HfFileSystem()
assert sorted(Path(path).name for path in remote.ls(f"{MODEL}/sub", detail=False)) == ["words.txt"]
with remote.open(f"{MODEL}/{shard}", "rb", block_size=10_000) as stream:
    stream.seek(54_321)
    there = stream.read(12_345)
assert there == (ORIGINALS / MODEL / shard).read_bytes()[54_321 : 54_321 + 12_345]
assert remote.glob(f"{MODEL}/*.safetensors")
assert remote.exists(f"datasets/{DATA}/data/train.csv")
