"""Uploads and downloads saved edits with `huggingface_hub`."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub

from reftlens.edit.checkpoint.files import CONFIG_NAME, TENSORS_NAME
from reftlens.files.seal import SEAL_NAME


def fetch(source: str | Path, *, revision: str | None = None) -> Path:
    """Returns the folder of a saved edit, downloading it if it is not local.

    Args:
        source: a folder, or the id of a repository on the hub.
        revision: branch, tag or commit; the main branch by default.

    Raises:
        ValueError: If the source is neither.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    try:
        # Other files of the repository are not needed.
        path = huggingface_hub.snapshot_download(
            str(source), revision=revision, allow_patterns=[CONFIG_NAME, TENSORS_NAME, SEAL_NAME]
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source} is not a saved edit: no such folder exists, and fetching it from the Hugging Face Hub failed: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    return Path(path)


def upload(folder: Path, repo_id: str, *, private: bool | None, token: str | None, commit_message: str) -> str:
    """Uploads a saved edit to a repository on the hub, which is created if it does not exist.

    Returns:
        The URL of the commit.
    """
    client = huggingface_hub.HfApi(token=token)
    client.create_repo(repo_id, private=private, exist_ok=True)
    return client.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message).commit_url
