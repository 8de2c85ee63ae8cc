"""Saving, pushing and loading checkpoints, so that nobody ever reads half of one."""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi

from .configuration_sgma import custom_pipelines
from .fusion_code_sgma import check_fusion, load_fusion_code, save_fusion_code
from .pipeline_sgma import SgmaPipeline  # noqa: F401  so that its file travels, too


WEIGHT_FILE = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
SHARD_INDEX = "model.safetensors.index.json"


@contextlib.contextmanager
def replace_when_complete(directory: str | os.PathLike) -> Iterator[Path]:
    """Give a folder to write a checkpoint into, and move its files to `directory` if nothing failed.

    A full disk or a killed process leaves an earlier checkpoint in `directory`, which is made if needed, as it was.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    # Inside the folder, so that moving is renaming; hidden, so that nothing takes a remnant for a checkpoint.
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=directory) as staging:
        yield Path(staging)
        names = sorted(os.listdir(staging), key=lambda name: not name.endswith(".safetensors"))  # weights first
        for name in names:
            os.replace(Path(staging, name), directory / name)
    if any(WEIGHT_FILE.fullmatch(name) for name in names):  # an earlier checkpoint may have had more shards
        for path in directory.iterdir():
            if WEIGHT_FILE.fullmatch(path.name) and path.name not in names:
                path.unlink()


def refuse_public_repository(api: HfApi, repo_id: str, *, private: bool | None, repo_type: str = "model") -> None:
    """Raise ValueError if `private` and the repository is public: `create_repo` leaves one that is there as it is."""
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        raise ValueError(
            f"The repository {repo_id} is public, and a private one was asked for; nothing was uploaded. Give "
            "--public (`private=False` in Python) to push to it all the same, or another name."
        )


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    path_in_repo: str = "",
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload model",
    commit_description: str | None = None,
    default_card: str | None = None,
) -> CommitInfo:
    """Upload all files of a folder to a model repository in one commit, which is there as a whole or not at all.

    Weights of an earlier push that are not among the files are deleted in the same commit: a `model.safetensors` left
    beside newer shards would be loaded in their place. Names that begin with a dot are left out. Repository and
    branch (`revision`, None is `main`) are made if they are not there. `private` of None is the account's default,
    True refuses with ValueError a repository that is public. `create_pr` proposes the commit instead of making it.
    `default_card` becomes README.md if neither the folder nor the repository has one.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    refuse_public_repository(api, repo_id, private=private)
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    paths = (path.relative_to(folder) for path in sorted(Path(folder).rglob("*")) if path.is_file())
    names = [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]
    prefix = f"{path_in_repo.strip('/')}/" if path_in_repo else ""
    operations = [CommitOperationAdd(prefix + name, os.path.join(folder, name)) for name in names]
    there = api.list_repo_files(repo_id, revision=revision)
    if default_card is not None and "README.md" not in {*names, *there}:
        operations.append(CommitOperationAdd(f"{prefix}README.md", default_card.encode()))
    if any(WEIGHT_FILE.fullmatch(name) for name in names):
        old = [name.removeprefix(prefix) for name in there if name.startswith(prefix)]
        stale = [name for name in old if WEIGHT_FILE.fullmatch(name) and name not in names]
        operations += [CommitOperationDelete(prefix + name) for name in stale]
    return api.create_commit(
        repo_id,
        operations,
        commit_message=commit_message,
        commit_description=commit_description,
        revision=revision,
        create_pr=create_pr,
    )


class SgmaPushToHubMixin:
    """`push_to_hub` in one commit, for the model and its processor."""

    default_commit_message = "Upload processor"

    def default_card(self, repo_id: str) -> str | None:
        """README.md for a repository that has none; None leaves it without."""

    def push_to_hub(
        self, repo_id: str, *, commit_message: str | None = None, max_shard_size: int | str = "50GB", **options
    ) -> CommitInfo:
        """Upload what `save_pretrained` writes, the code included, to the Hub in one commit.

        Args:
            repo_id: Repository, "name" or "organisation/name"; created if it is not there.
            commit_message: First line of the commit.
            max_shard_size: Size from which the weights are split into several files, in bytes or such as "5GB".
            options: `private`, `token`, `revision`, `create_pr` and `commit_description`, as for [`push_folder`].

        Returns:
            The commit.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            message, card = commit_message or self.default_commit_message, self.default_card(repo_id)
            return push_folder(folder, repo_id, commit_message=message, default_card=card, **options)


class SgmaCheckpointMixin(SgmaPushToHubMixin):
    """Saving, pushing and loading of a model: whole or not at all, and safetensors only."""

    default_commit_message = "Upload model"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load a model as `PreTrainedModel.from_pretrained` does, from safetensors only.

        Raises:
            ValueError: If other weights are asked for, or the index of the shards names files outside the folder.
            OSError: If a file is missing.
        """
        if kwargs.setdefault("use_safetensors", True) is False:
            raise ValueError(
                "`use_safetensors` is False; SGMA loads safetensors only, because other formats are unpickled, which "
                "can run code. Leave the argument out."
            )
        _check_shard_names(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        if kwargs.get("trust_remote_code") and pretrained_model_name_or_path is not None:
            load_fusion_code(pretrained_model_name_or_path, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    def save_pretrained(self, save_directory, is_main_process: bool = True, push_to_hub: bool = False, **kwargs):
        """Save as `PreTrainedModel.save_pretrained` does, but replace an earlier checkpoint only when all is written.

        A full disk or a killed process leaves the earlier one as it was. `AutoModel` finds the class with a head. The
        code of a fusion of one's own is written too.

        Raises:
            ValueError: If the checkpoint could not be loaded as the model that it is: its fusion has another name, or
                code that cannot travel.
        """
        check_fusion(self)
        self.config.custom_pipelines = custom_pipelines()  # `pipeline` writes classes into it
        if self._auto_class is not None:
            module = type(self).__module__.rpartition(".")[2]
            auto_map = getattr(self.config, "auto_map", None) or {}
            self.config.auto_map = {**auto_map, "AutoModel": f"{module}.{type(self).__name__}"}
        if not is_main_process:
            super().save_pretrained(save_directory, is_main_process=False, **kwargs)
            return
        names = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr")
        push_kwargs = {name: kwargs.pop(name) for name in names if name in kwargs}
        with replace_when_complete(save_directory) as staging:
            super().save_pretrained(staging, **kwargs)
            if self._auto_class is not None:
                save_fusion_code(self.config, staging)
        if push_to_hub:
            push_kwargs.setdefault("repo_id", os.path.basename(os.path.abspath(save_directory)))
            for name in ("token", "max_shard_size"):
                if kwargs.get(name) is not None:
                    push_kwargs[name] = kwargs[name]
            self.push_to_hub(**push_kwargs)

    def default_card(self, repo_id: str) -> str:
        """README.md that says what the configuration says; the package writes one that knows the training."""
        config = self.config
        named = zip(config.modalities, config.modality_channels, strict=True)
        modalities = "\n".join(f"| {name} | {channels} |" for name, channels in named)
        return (
            "---\nlibrary_name: transformers\npipeline_tag: image-segmentation\n"
            "tags:\n- sgma\n- remote-sensing\n- custom_code\n---\n\n"
            f"# {repo_id.rpartition('/')[2]}\n\nSGMA (arXiv:2603.02505, an independent implementation): semantic "
            "segmentation from whichever of these modalities are there.\n\n"
            f"| modality | channels |\n|---|---|\n{modalities}\n\nClasses: {', '.join(config.class_names)}.\n\n"
            "This model has not been evaluated here: the card states no scores.\n\n```python\n"
            "from transformers import AutoImageProcessor, AutoModel\n\n"
            f'processor = AutoImageProcessor.from_pretrained("{repo_id}", trust_remote_code=True)\n'
            f'model = AutoModel.from_pretrained("{repo_id}", trust_remote_code=True)\n```\n'
        )


def _check_shard_names(name_or_path: str | os.PathLike, subfolder: str) -> None:
    """Refuse an index that names files outside its folder; those of a repository the Hub's library checks itself."""
    index = os.path.join(str(name_or_path), subfolder, SHARD_INDEX)
    if not os.path.isfile(index):
        return
    try:
        with open(index, encoding="utf-8") as file:
            names = set(json.load(file)["weight_map"].values())
        outside = sorted(name for name in names if not WEIGHT_FILE.fullmatch(name))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index!r} is no index of a sharded checkpoint: {error!r}. Save the model again.") from error
    if outside:
        raise ValueError(
            f"{index!r} names {outside[:3]} as files of weights; expected names such as "
            "'model-00001-of-00002.safetensors' in the same folder. Do not trust this checkpoint."
        )
