"""The published VAN checkpoints, by name, and their download from the Hugging Face hub and OpenMMLab."""

import hashlib
import os
import pathlib
import re
import warnings
from typing import NamedTuple


class DownloadError(OSError):
    """A published checkpoint could not be downloaded, or arrived damaged; the message names the ways out."""


class Release(NamedTuple):
    """One published checkpoint: where it is stored, and what it is.

    Attributes:
        name: its name here.
        variant: the size of VAN that it belongs to.
        repository: its repository on the Hugging Face hub, or its folder on OpenMMLab's server.
        file: its name in that repository or folder.
        revision: branch or pull request of the repository; None on OpenMMLab's server.
        top_1: ImageNet-1k top-1 accuracy in percent, as published by the authors; None if unknown.
        data: what it was trained on.
        licence: SPDX name of the licence that its repository states.
        sha256: the first digits of the file's SHA-256, as published; "" where only the hub announces it.
        head: the class in `heads` whose weights the file holds as well, or None.
        mean_iou: its mean IoU on ADE20K in percent, as OpenMMLab measured it at a single scale, or None.
        doubt: why `sha256` may be wrong; "" where there is no reason to think so.
    """

    name: str
    variant: str
    repository: str
    file: str
    revision: str | None
    top_1: float | None = None
    data: str = "ImageNet-1k"
    licence: str = "Apache-2.0"
    sha256: str = ""
    head: str | None = None
    mean_iou: float | None = None
    doubt: str = ""

    @property
    def score(self) -> str:
        """What is published about its quality, in words."""
        scores = {"top-1": self.top_1, "mIoU": self.mean_iou}
        return ", ".join(f"{name} {value}" for name, value in scores.items() if value is not None)

    @property
    def address(self) -> str:
        """Where the file lies, for people to read."""
        root = "" if self.revision else f"{find_openmmlab()}/"
        return f"{root}{self.repository}/{self.file}"


def find_openmmlab() -> str:
    """Returns the address of OpenMMLab's server, or that of the mirror in OPENMMLAB_ENDPOINT."""
    return os.environ.get("OPENMMLAB_ENDPOINT", "").rstrip("/") or "https://download.openmmlab.com"


def find_release(name: str, variant: str | None = None) -> Release:
    """Returns the release with a name.

    Args:
        name: a key of `RELEASES`, or one of `SHORTHANDS` for the release of `variant`.
        variant: the size that the weights are for ("b0" .. "b6"); None takes any.

    Returns:
        The row of `RELEASES`.

    Raises:
        ValueError: for an unknown name, for a shorthand without a variant or with one that has no such
            release, and for a release of another variant.
    """
    if name in SHORTHANDS:
        name = _complete_shorthand(name, variant)
    if name not in RELEASES:
        raise ValueError(
            f"release must be one of {list(SHORTHANDS)} or of {list(RELEASES)}, or pass the path of a file: "
            f"weights='path/to/file'. Received: {name!r}"
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
    """Returns the path of a release in the cache, after downloading it if it is not there yet.

    The hub's client downloads from OpenMMLab's server as well. It shows the progress, resumes, and reads its
    own environment variables: HF_HOME (the cache's folder), HF_HUB_OFFLINE (use nothing but the cache) and,
    for the hub, HF_ENDPOINT (a mirror). OPENMMLAB_ENDPOINT is a mirror of OpenMMLab's server.

    Args:
        release: a row of `RELEASES`.

    Returns:
        The path of the complete file, whose content was compared with the release's SHA-256 or the one that
        the hub announced.

    Raises:
        DownloadError: where the file cannot be downloaded or is damaged. A damaged file is deleted from the
            cache.
    """
    try:
        path = _fetch_from_hub(release) if release.revision else _fetch_from_openmmlab(release)
        expected = release.sha256 or _read_announced(path)
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest() if expected else ""
    except Exception as error:  # requests, httpx, httpx2, Xet and the system share no narrower class
        raise DownloadError(_explain(release, error)) from error
    if found.startswith(expected):
        return path
    source = "the published name says" if release.sha256 else "the hub announced"
    if release.doubt and _is_checkpoint(path):
        warnings.warn(
            f"the SHA-256 of {path} is {found}, {source} {expected}: {release.doubt}. Whether the file is "
            "whole could not be checked",
            stacklevel=2,
        )
        return path
    raise DownloadError(
        f"{path} is damaged: its SHA-256 is {found}, {source} {expected}. No weights were loaded. "
        f"{_discard(path)} If the next download is damaged too, the server has a wrong file. "
        f"{_ways_out(release)}"
    )


# The authors' README gives the accuracies (the Hugging Face files are conversions of theirs), each
# repository's page the licence. The authors' code states Apache-2.0 too, and adds: "For commercial use,
# please contact the authors". The safetensors are pull requests of the hub's conversion robot, never merged.
_ON_THE_HUB = (
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

# projects/van of mmsegmentation 1.x: the backbones from its configurations, the segmenters from its README,
# converted from the authors' files. The eight digits in a file's name are the first of its SHA-256.
_OPENMMLAB_FOLDER = "mmsegmentation/v0.5/van_3rdparty"
_OPENMMLAB_BACKBONES = (
    # name, file, trained on, top-1
    ("b0_imagenet_openmmlab", "van-b0_3rdparty_20230522-956f5e0d.pth", "ImageNet-1k", 75.4),
    ("b1_imagenet_openmmlab", "van-b1_3rdparty_20230522-3adb117f.pth", "ImageNet-1k", 81.1),
    ("b2_imagenet_openmmlab", "van-b2_3rdparty_20230522-636fac93.pth", "ImageNet-1k", 82.8),
    ("b3_imagenet_openmmlab", "van-b3_3rdparty_20230522-a184e051.pth", "ImageNet-1k", 83.9),
    ("b4_imagenet22k", "van-b4-in22k_3rdparty_20230522-5e31cafb.pth", "ImageNet-22k", None),
    ("b5_imagenet22k", "van-b5-in22k_3rdparty_20230522-b26134d7.pth", "ImageNet-22k", None),
    ("b6_imagenet22k", "van-b6-in22k_3rdparty_20230522-5e5172a3.pth", "ImageNet-22k", None),
)
_OPENMMLAB_SEGMENTERS = (
    # name, start of the file's name, SHA-256, mean IoU
    ("upernet_b2_ade20k", "van-b2-in1kpre_upernet", "19c58aee", 49.35),
    ("upernet_b3_ade20k", "van-b3-in1kpre_upernet", "653bd6b7", 49.71),
    ("upernet_b4_ade20k", "van-b4-in1kpre_upernet", "653bd6b7", 51.56),
    ("upernet_b4_imagenet22k_ade20k", "van-b4-in22kpre_upernet", "4a4d744a", 52.61),
    ("upernet_b5_imagenet22k_ade20k", "van-b5-in22kpre_upernet", "5bb6f2b4", 53.11),
    ("upernet_b6_imagenet22k_ade20k", "van-b6-in22kpre_upernet", "e226b363", 54.25),
    ("semantic_fpn_b0_ade20k", "van-b0-in1kpre_fpn", "75a76298", 38.65),
    ("semantic_fpn_b1_ade20k", "van-b1-in1kpre_fpn", "104499ff", 43.22),
    ("semantic_fpn_b2_ade20k", "van-b2-in1kpre_fpn", "7074e6f8", 46.84),
    ("semantic_fpn_b3_ade20k", "van-b3-in1kpre_fpn", "2c3b7f5e", 48.32),
)
_TWICE = "OpenMMLab's README prints it for UPerNet b3 and for b4, so one of the two names must be wrong"


def _list_releases():
    """Yields the rows of all tables."""
    for name, variant, repository, *others in _ON_THE_HUB:
        yield Release(name, variant, f"Visual-Attention-Network/{repository}", *others)
    for name, file, data, top_1 in _OPENMMLAB_BACKBONES:
        sha256 = file.removesuffix(".pth")[-8:]
        yield Release(name, name[:2], _OPENMMLAB_FOLDER, file, None, top_1, data, sha256=sha256)
    for name, start, sha256, mean_iou in _OPENMMLAB_SEGMENTERS:
        yield Release(
            name,
            start[4:6],
            _OPENMMLAB_FOLDER,
            f"{start}_3rdparty_512x512-ade20k_20230522-{sha256}.pth",
            None,
            data="ADE20K",
            sha256=sha256,
            head="UPerNet" if start.endswith("upernet") else "SemanticFPN",
            mean_iou=mean_iou,
            doubt=_TWICE if sha256 == "653bd6b7" else "",
        )


RELEASES = {release.name: release for release in _list_releases()}
# Short names for a variant's release, f"{variant}_{shorthand}".
SHORTHANDS = ("imagenet", "imagenet22k")


def _complete_shorthand(name, variant):
    variants = [other.variant for other in RELEASES.values() if other.name == f"{other.variant}_{name}"]
    if variant in variants:
        return f"{variant}_{name}"
    (other,) = set(SHORTHANDS) - {name}
    raise ValueError(
        f"the release {name!r} needs a variant, one of {variants}; for the others there is {other!r}, or "
        f"pass the path of a file: weights='path/to/file'. Received: name={name!r}, variant={variant!r}"
    )


def _fetch_from_hub(release):
    from huggingface_hub import hf_hub_download

    return hf_hub_download(repo_id=release.repository, filename=release.file, revision=release.revision)


def _fetch_from_openmmlab(release):
    """Returns the path of the file in the folder that the hub's client keeps for other libraries."""
    from filelock import FileLock
    from huggingface_hub import cached_assets_path
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get  # Transformers downloads by it, too

    path = cached_assets_path("van_backbones", "openmmlab", "van_3rdparty") / release.file
    unfinished = path.with_name(f"{path.name}.incomplete")
    with FileLock(f"{path}.lock"):  # another process may be at it too
        if not path.exists():
            with open(unfinished, "ab") as file:
                try:
                    http_get(release.address, file, resume_size=file.tell(), displayed_filename=release.name)
                except HfHubHTTPError as error:
                    # 416: nothing is left to send, since all was there before a kill. The checksum decides.
                    if error.response is None or error.response.status_code != 416:
                        raise
            os.replace(unfinished, path)
    return str(path)


def _is_checkpoint(path):
    from van_backbones.checkpoints.torch_file import is_torch_file

    return is_torch_file(path)


def _follow_links(path):
    """Returns a path and what it links to, link by link, down to the file."""
    chain = [path]
    while os.path.islink(chain[-1]):
        chain.append(os.path.join(os.path.dirname(chain[-1]), os.readlink(chain[-1])))
    return chain


def _read_announced(path):
    """Returns the SHA-256 that the hub announced for a cached file, or ""."""
    # A cached file links to a blob named by its ETag, which for files as large as ours is the SHA-256. Only
    # the first link counts: the newest client's blobs may link on, to a file that is named by its Xet hash.
    # Without links (Windows) or with a Git hash there is nothing to compare; the client checked the size.
    announced = os.path.basename(_follow_links(path)[:2][-1])
    return announced if re.fullmatch("[0-9a-f]{64}", announced) else ""


def _discard(path):
    """Deletes a cached file and everything it links to; returns the outcome as a text for an error."""
    # A damaged blob that is left there would be used again in the next call.
    try:
        for link in _follow_links(path):
            pathlib.Path(link).unlink(missing_ok=True)  # another process may be at it too
    except OSError as error:
        return f"It could not be deleted ({error}): delete {os.path.realpath(path)} by hand, then call again."
    return "It was deleted: call again to download it anew."


def _explain(release, error):
    """Returns the message for a failed download: what was asked, what happened, the ways out."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    # This error says only that the file is not in the cache either; its cause tells what happened.
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    revision = f" (revision {release.revision})" if release.revision else ""
    return (
        f"could not download {release.address}{revision}: {reason.rstrip('.')}. No weights were loaded. "
        f"{_ways_out(release)}"
    )


def _ways_out(release):
    """Returns what a user can do when a download fails."""
    from huggingface_hub import constants

    if release.revision:
        mirror = f"HF_ENDPOINT to a mirror (it is {constants.ENDPOINT})"
        folder = os.path.join(constants.HF_HUB_CACHE, f"models--{release.repository.replace('/', '--')}")
    else:
        mirror = f"OPENMMLAB_ENDPOINT to a mirror (it is {find_openmmlab()})"
        folder = os.path.join(constants.HF_ASSETS_CACHE, "van_backbones")
    return (
        f"Ways out: check the network and call again; set {mirror}; delete {folder}, which may hold a broken "
        "part of it; set HF_HOME to a folder for the cache that has room and that you may write to; unset "
        "HF_HUB_OFFLINE, which allows only what is in the cache; or download the file by hand and pass its "
        f"path: weights='path/to/{release.file}'."
    )
