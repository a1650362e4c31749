"""A saved edit on the Hugging Face Hub, by `huggingface_hub`: there is nothing of our own in between."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub

from reftlens.edit.checkpoint.files import CONFIG_NAME, TENSORS_NAME
from reftlens.files.seal import SEAL_NAME


def fetch(source: str | Path, *, revision: str | None = None) -> Path:
    """The folder of a saved edit: itself if it exists here, else downloaded.

    Args:
        source: a folder, or the id of a repository on the hub.
        revision: branch, tag or commit there; its main branch if not given.

    Raises:
        ValueError: if it is neither.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    try:
        # Only these: whatever else lies there is not read.
        path = huggingface_hub.snapshot_download(
            str(source), revision=revision, allow_patterns=[CONFIG_NAME, TENSORS_NAME, SEAL_NAME]
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source} is not a saved edit: there is no such folder, and as a hub id it could not be fetched: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    return Path(path)


def upload(folder: Path, repo_id: str, *, private: bool | None, token: str | None, commit_message: str) -> str:
    """Puts a saved edit into a repository on the hub, which is made if it does not exist.

    Returns:
        The address of the commit.
    """
    client = huggingface_hub.HfApi(token=token)
    client.create_repo(repo_id, private=private, exist_ok=True)
    return client.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message).commit_url
