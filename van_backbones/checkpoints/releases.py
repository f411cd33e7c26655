"""The published VAN checkpoints, by name, and their download from the Hugging Face hub."""

import hashlib
import os
import pathlib
import re
from typing import NamedTuple


class DownloadError(OSError):
    """A published checkpoint could not be downloaded, or arrived damaged; the message names the ways out."""


class Release(NamedTuple):
    """Where one published checkpoint lies, and what it is.

    Attributes:
        name: its name here.
        variant: the size of VAN that it belongs to.
        repository: its repository on the Hugging Face hub.
        file: its name in that repository.
        revision: branch or pull request of the repository.
        top_1: ImageNet-1k top-1 accuracy in percent, as published by the authors.
        data: what it was trained on.
        licence: SPDX name of the licence that its repository states.
    """

    name: str
    variant: str
    repository: str
    file: str
    revision: str
    top_1: float
    data: str = "ImageNet-1k"
    licence: str = "Apache-2.0"


def find_release(name: str, variant: str | None = None) -> Release:
    """Returns the release of a name.

    Args:
        name: a key of `RELEASES`, or "imagenet" for the one of `variant`.
        variant: the size that the weights are for ("b0" .. "b6"); None takes any.

    Returns:
        The row of `RELEASES`.

    Raises:
        ValueError: for an unknown name, for "imagenet" without a variant or with one that has no release, and
            for a release of another variant.
    """
    if name == "imagenet":
        if variant in _NOT_ON_THE_HUB:
            raise ValueError(
                f"no release of {variant} can be downloaded from here: {_BRING_THE_FILE} "
                f"Received: name={name!r}, variant={variant!r}"
            )
        name = f"{variant}_imagenet"
        if name not in RELEASES:
            raise ValueError(
                f"the release 'imagenet' needs a variant, one of {_list_names('variant')}. "
                f"Received: variant={variant!r}"
            )
    if name not in RELEASES:
        raise ValueError(
            f"release must be 'imagenet' or one of {_list_names('name')}; {_BRING_THE_FILE} "
            f"Received: {name!r}"
        )
    release = RELEASES[name]
    if variant is not None and release.variant != variant:
        raise ValueError(
            f"the release {name!r} holds weights of {release.variant}, not of {variant}; build the variant "
            f"{release.variant!r}, or name a release of {variant} (see RELEASES). "
            f"Received: name={name!r}, variant={variant!r}"
        )
    return release


def download(release: Release) -> str:
    """Returns the path of a release in the hub's cache, after downloading it where it is not there yet.

    The hub's client shows the progress, resumes, and reads its own environment variables: HF_ENDPOINT (a
    mirror), HF_HOME (where the cache lies), HF_HUB_OFFLINE (the cache alone).

    Args:
        release: a row of `RELEASES`.

    Returns:
        The path of the whole file. Its content was compared with the SHA-256 that the hub announced.

    Raises:
        DownloadError: where the file cannot be downloaded or is damaged. A damaged file is deleted from the
            cache.
    """
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(repo_id=release.repository, filename=release.file, revision=release.revision)
        announced, found = _read_checksums(path)
    except Exception as error:  # requests, httpx, httpx2, Xet and the system share no narrower class
        raise DownloadError(_explain(release, error)) from error
    if announced != found:
        raise DownloadError(
            f"{path} is damaged: its SHA-256 is {found}, the hub announced {announced}. No weights were "
            f"loaded. {_discard(path)} If the next one is damaged too, the server gives a wrong file. "
            f"{_ways_out(release)}"
        )
    return path


# The authors' README gives the accuracies (the Hugging Face files are conversions of theirs), each
# repository's page the licence. The authors' code states Apache-2.0 too, and adds: "For commercial use,
# please contact the authors". The safetensors are pull requests of the hub's conversion robot, never merged.
_ROWS = (
    # name, variant, repository, file, revision, top-1
    ("b0_imagenet", "b0", "van-tiny", "pytorch_model.bin", "main", 75.4),
    ("b1_imagenet", "b1", "van-small", "pytorch_model.bin", "main", 81.1),
    ("b2_imagenet", "b2", "van-base", "pytorch_model.bin", "main", 82.8),
    ("b3_imagenet", "b3", "van-large", "pytorch_model.bin", "main", 83.9),
    ("b2_imagenet_safetensors", "b2", "van-base", "model.safetensors", "refs/pr/1", 82.8),
    ("b3_imagenet_safetensors", "b3", "van-large", "model.safetensors", "refs/pr/1", 83.9),
    ("b0_imagenet_original", "b0", "VAN-Tiny-original", "van_tiny_754.pth.tar", "main", 75.4),
    ("b1_imagenet_original", "b1", "VAN-Small-original", "van_small_811.pth.tar", "main", 81.1),
    ("b2_imagenet_original", "b2", "VAN-Base-original", "van_base_828.pth.tar", "main", 82.8),
    ("b3_imagenet_original", "b3", "VAN-Large-original", "van_large_839.pth.tar", "main", 83.9),
)
RELEASES = {
    name: Release(name, variant, f"Visual-Attention-Network/{repository}", *others)
    for name, variant, repository, *others in _ROWS
}

_NOT_ON_THE_HUB = ("b4", "b5", "b6")
_BRING_THE_FILE = (
    "the backbones b4 .. b6 and the segmenters are not on the hub: download the file by hand from the "
    "authors' cloud drives (links: the READMEs of Visual-Attention-Network on GitHub) or OpenMMLab's mirror "
    "(links: projects/van of open-mmlab/mmsegmentation), and pass its path: weights='path/to/file'."
)


def _list_names(field):
    """Returns the different values of a field over all releases, for an error."""
    return list(dict.fromkeys(getattr(release, field) for release in RELEASES.values()))


def _follow_links(path):
    """Returns a path and what it links to, link by link, down to the file."""
    chain = [path]
    while os.path.islink(chain[-1]):
        chain.append(os.path.join(os.path.dirname(chain[-1]), os.readlink(chain[-1])))
    return chain


def _read_checksums(path):
    """Returns the SHA-256 that the hub announced for a cached file and that of its content, or two None."""
    # A cached file links to a blob that is named by its ETag: the SHA-256, for files as large as ours. Only
    # the first link counts: the newest client's blobs may link on, to a file that is named by its Xet hash.
    # Without links (Windows) or with a Git hash there is nothing to compare; the client checked the size.
    announced = os.path.basename(_follow_links(path)[:2][-1])
    if not re.fullmatch("[0-9a-f]{64}", announced):
        return None, None
    with open(path, "rb") as file:
        return announced, hashlib.file_digest(file, "sha256").hexdigest()


def _discard(path):
    """Deletes a cached file with all that it links to; gives what came of it, for an error."""
    # A damaged blob that stays would be taken again at the next call.
    try:
        for link in _follow_links(path):
            pathlib.Path(link).unlink(missing_ok=True)  # another process may be at it too
    except OSError as error:
        return f"It could not be deleted ({error}): delete {os.path.realpath(path)} by hand, then call again."
    return "It was deleted: call again to download it afresh."


def _explain(release, error):
    """Returns the message for a failed download: what was asked, what happened, the ways out."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    # This one says only that the file is not in the cache either; its cause is what happened.
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"could not download {release.repository}/{release.file} (revision {release.revision}): "
        f"{reason.rstrip('.')}. No weights were loaded. {_ways_out(release)}"
    )


def _ways_out(release):
    """Returns what a user can do where a download fails."""
    from huggingface_hub import constants

    folder = os.path.join(constants.HF_HUB_CACHE, f"models--{release.repository.replace('/', '--')}")
    return (
        "Ways out: check the network and call again; set HF_ENDPOINT to a mirror (it is "
        f"{constants.ENDPOINT}); delete {folder}, where a broken part may lie; set HF_HOME to another folder "
        "for the cache, one with room that you may write to; unset HF_HUB_OFFLINE, which allows nothing but "
        f"the cache; or download the file by hand and pass its path: weights='path/to/{release.file}'."
    )
