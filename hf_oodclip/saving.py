"""Writing a model so that everything comes back, and pushing it so that it comes back anywhere."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .adapter_record import AdapterRecord
from .loading import NEGATIVES_FILE

__all__ = ["SavingMixin"]

_PUSH_OPTIONS = ("base", "commit_message", "create_pr", "private", "repo_id", "revision")


class SavingMixin:
    """Saves and pushes an OODCLIP model, or the adapter that is active on it."""

    if TYPE_CHECKING:
        peft_config: dict[str, Any]
        _negatives: Any
        _preprocessing: Any

    # Commit of the base, where it came from the Hub.
    _base_revision: str | None = None

    def save_pretrained(
        self, save_directory: str | Path, *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write a folder from which everything comes back: weights, bank, score, calibration, processor.

        With adapters loaded, as in transformers, the active one is written instead of the whole model.

        Args:
            save_directory: The folder.
            args: As in `PreTrainedModel.save_pretrained`.
            push_to_hub: Push the folder afterwards, see `hf_oodclip.hub.push_folder`.
            kwargs: As in `PreTrainedModel.save_pretrained`; with `push_to_hub`, also `repo_id` (default: the name
                of the folder), `private`, `revision`, `commit_message`, `create_pr` and `base`.
        """
        pushing = {name: kwargs.pop(name) for name in _PUSH_OPTIONS if name in kwargs}
        if kwargs.get("is_main_process", True) and not Path(save_directory).is_file():
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            if getattr(self, "_hf_peft_config_loaded", False):
                AdapterRecord.of(self).save(save_directory)
                for config in self.peft_config.values():
                    if config.base_model_name_or_path == self.__dict__.get("name_or_path"):
                        config.revision = self._base_revision
                    if hasattr(config, "belong_to"):
                        # The config writes the record too, and a copied model's still knows the model copied.
                        config.belong_to(self)
            else:
                if self._negatives is not None:
                    self._negatives.save(Path(save_directory) / NEGATIVES_FILE)
                self._preprocessing.save(save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if push_to_hub and kwargs.get("is_main_process", True):
            from .hub import push_folder

            repo_id = pushing.pop("repo_id", Path(save_directory).name)
            push_folder(save_directory, repo_id, token=kwargs.get("token"), **pushing)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        base: str | None = None,
        **kwargs: Any,
    ) -> str:
        """Push the model, or the active adapter, to the Hub in one commit, and return the commit's address.

        A card is written from what the model knows, unless the repo has one.

        Args:
            repo_id: `owner/name`; made if it does not exist.
            private: Whether a new repo is private; None is the owner's default.
            token: Access token; None is the one of `hf auth login`.
            revision: Branch to push to; made if it does not exist.
            commit_message: Message of the commit.
            create_pr: Open a pull request instead of changing the branch.
            base: Adapters: Hub id of the base, when it was loaded from a folder of this machine.
            kwargs: As in `save_pretrained` (`max_shard_size`, ...).

        Raises:
            HubError: The base is a folder of this machine, or the Hub refuses.
        """
        from .hub import has_card, push_folder

        options: dict[str, Any] = {"token": token, "revision": revision}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **kwargs)
            if not has_card(repo_id, **options):
                from hf_oodclip.model_cards.card import write_card

                write_card(Path(folder), repo_id=repo_id)
            return push_folder(
                folder,
                repo_id,
                private=private,
                commit_message=commit_message,
                create_pr=create_pr,
                base=base,
                **options,
            )
