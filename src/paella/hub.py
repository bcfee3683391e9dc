"""Model folders to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from paella.card import model_card

if TYPE_CHECKING:
    from paella.engine import Engine


def push(
    pipeline: Engine,
    folder: Path,
    repo_id: str,
    *,
    results: str = "",
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Uploads a model folder, with a model card as its README.md, in one commit; returns the repository's address.

    Args:
        pipeline: the model of that folder, which the card describes.
        repo_id: the repository's, like owner/name; it is made where there is none. Other files in it stay.
        results: what was measured, in Markdown, for the card.
        private: whether a new repository is; None = as its owner has set.
        token: of the hub; None = that of `hf auth login`.

    Raises:
        ValueError: `repo_id` is not of that form.
        ConnectionError: the hub cannot be reached, or refuses.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"repo_id: must be like owner/name, not {repo_id!r}")
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    try:
        repository = api.create_repo(repo_id, private=private, exist_ok=True)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
        files: dict[str, Path | bytes] = {path.relative_to(folder).as_posix(): path for path in paths}
        files["README.md"] = model_card(pipeline, repository.repo_id, results).encode()
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(repository.repo_id, operations, commit_message=f"Upload {pipeline.name}")
    except ValueError as error:
        raise ValueError(f"repo_id: {error}") from error
    except Exception as error:  # of whichever HTTP client the hub's own uses
        raise ConnectionError(f"repo_id: {repo_id} cannot be uploaded ({' '.join(str(error).split())})") from error
    return str(repository)
