"""The table of published checkpoints, and their download from a small server on loopback."""

import dataclasses
import hashlib
import http.server
import importlib.util
import os
import pathlib
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import warnings

import numpy as np
import pytest

# Loaded from its file: `import van_backbones` takes seconds, and the many processes below do not need it.
MODULE = pathlib.Path(__file__).resolve().parents[1] / "van_backbones" / "checkpoints" / "releases.py"
specification = importlib.util.spec_from_file_location("releases_under_test", MODULE)
releases = importlib.util.module_from_spec(specification)
specification.loader.exec_module(releases)

CONTENT = random.Random(0).randbytes(300_000)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FOLDER = "models--Visual-Attention-Network--van-tiny"

# The hub's client reads its environment at import: each download is a process of its own. It waits 1 .. 8
# seconds between its attempts: cut short here.
DOWNLOAD = """
import importlib.util, sys, time
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.05))
specification = importlib.util.spec_from_file_location("releases", sys.argv[1])
releases = importlib.util.module_from_spec(specification)
specification.loader.exec_module(releases)
release = releases.find_release(sys.argv[2])
if sys.argv[3:]:
    release = release._replace(sha256=sys.argv[3])
try:
    print(releases.download(release))
except releases.DownloadError as error:
    print(error)
    sys.exit(3)
"""


@dataclasses.dataclass
class Hub:
    """What the server has and how it misbehaves."""

    content: bytes = CONTENT
    sha256: str = ""  # announced instead of the true one
    size: int = 0  # announced instead of the true one
    status: int = 200
    error_code: str = ""
    cut_after: int = 0  # bytes of the first body that are sent before the connection closes
    pause: float = 0  # seconds before each eighth of the body
    stalls: bool = False  # sends half of the body, and then nothing
    redirects: bool = False  # redirects to another host, as for large files
    ignores_range: bool = False
    requests: list = dataclasses.field(default_factory=list)  # (method, path, Range)
    tokens: list = dataclasses.field(default_factory=list)  # authorisations of the requests
    closing: threading.Event = dataclasses.field(default_factory=threading.Event)
    port: int = 0
    storage_port: int = 0

    @property
    def etag(self):
        return self.sha256 or hashlib.sha256(self.content).hexdigest()

    def bodies(self):
        return [asked_range for method, _, asked_range in self.requests if method == "GET"]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one file at any address, as the hub does; the subclass of a test has its `hub`."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        hub = self.hub
        hub.requests.append((self.command, urllib.parse.unquote(self.path), self.headers["Range"]))
        hub.tokens.append(self.headers["Authorization"])
        if hub.status != 200:
            return self.send(hub.status, {"X-Error-Code": hub.error_code, "Content-Length": "0"})
        headers = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{hub.etag}"', "ETag": f'"{hub.etag}"'}
        headers["X-Linked-Size"] = str(hub.size or len(hub.content))
        if self.path.startswith("/storage/"):
            headers = {"ETag": '"a name of its own"'}
        elif hub.redirects:
            target = f"http://127.0.0.1:{hub.storage_port}/storage/{hub.etag}"
            return self.send(302, {**headers, "ETag": '"another"', "Location": target, "Content-Length": "0"})
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "bytes=0-")[1])
        start = 0 if hub.ignores_range else start
        length = len(hub.content)
        if start >= length:
            return self.send(416, {"Content-Range": f"bytes */{length}", "Content-Length": "0"})
        if start > 0:
            headers["Content-Range"] = f"bytes {start}-{length - 1}/{length}"
        self.send(206 if start else 200, {**headers, "Content-Length": str(length - start)})
        if self.command == "GET":
            self.send_body(hub.content[start:])

    def do_HEAD(self):
        self.do_GET()

    def send(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send_body(self, body):
        hub = self.hub
        if hub.cut_after and len(hub.bodies()) == 1:
            body = body[: hub.cut_after]
        if hub.stalls:
            body = body[: len(body) // 2]
        step = len(body) // 8 + 1
        for start in range(0, len(body), step):
            time.sleep(hub.pause)
            self.wfile.write(body[start : start + step])
        if hub.stalls:
            hub.closing.wait(20)


@pytest.fixture
def serve():
    """Returns a function that starts a hub with the given behaviour."""
    running = []

    def start(**behaviour):
        hub = Hub(**behaviour)
        handler = type("TestHandler", (Handler,), {"hub": hub})
        servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        hub.port, hub.storage_port = (server.server_address[1] for server in servers)
        for server in servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            running.append((hub, server))
        return hub

    yield start
    for hub, server in running:
        hub.closing.set()
        server.shutdown()
        server.server_close()


def start_download(port, home, *arguments, **settings):
    environment = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    environment |= {
        "HOME": str(home),
        "HF_HOME": str(home),
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "OPENMMLAB_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        **settings,
    }
    command = [sys.executable, "-c", DOWNLOAD, str(MODULE), *(arguments or ["b0_imagenet"])]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, text=True, stdout=pipe, stderr=pipe)


def finish(process):
    """Returns what a download process printed, its errors and its exit code."""
    try:
        output, errors = process.communicate(timeout=50)
    finally:
        process.kill()
    return output.strip(), errors, process.returncode


def download(*arguments, **settings):
    """Returns the path that a download in its own process returned."""
    output, errors, code = finish(start_download(*arguments, **settings))
    assert code == 0, output + errors
    return pathlib.Path(output)


def fail(*arguments, **settings):
    """Returns the message of the DownloadError of a download in its own process."""
    output, errors, code = finish(start_download(*arguments, **settings))
    assert code == 3, output + errors
    mirror = "OPENMMLAB_ENDPOINT" if OPENMMLABS[0] in arguments else "HF_ENDPOINT"
    ways_out = f"No weights were loaded.*set {mirror}.*HF_HOME.*HF_HUB_OFFLINE.*weights='path/to/"
    assert re.search(ways_out, output, re.DOTALL)
    return output


# A release of OpenMMLab's, whose hash becomes that of the content; and its address on the server.
OPENMMLABS = ("b4_imagenet22k", hashlib.sha256(CONTENT).hexdigest()[:8])
ADDRESS = "mmsegmentation/v0.5/van_3rdparty/van-b4-in22k_3rdparty_20230522-5e31cafb.pth"


def list_parts(home):
    """Returns the paths of incomplete files of OpenMMLab's."""
    return list((home / "assets").rglob("*.incomplete"))


def write_part(home, content):
    """Leaves the files that a killed download would leave."""
    folder = home / "assets" / "van_backbones" / "openmmlab" / "van_3rdparty"
    folder.mkdir(parents=True)
    (folder / f"{ADDRESS.rpartition('/')[2]}.incomplete").write_bytes(content)


def list_files(home):
    """Returns the names in a cache of the repository: blobs, parts of them, and links."""
    parts = (home / "hub" / FOLDER / part for part in ("blobs", "snapshots"))
    return sorted(path.name for part in parts for path in part.rglob("*") if not path.is_dir())


class TestFindRelease:
    def test_table(self):
        for name, release in releases.RELEASES.items():
            assert release.name == name
            assert release.licence == "Apache-2.0"
            assert release.variant in name.split("_")
            assert (release.head is None) == (release.mean_iou is None) == (release.data != "ADE20K")
            assert (release.top_1 is None) == (release.data != "ImageNet-1k")
        rows = releases.RELEASES.values()
        accuracies = {(release.variant, release.top_1) for release in rows if release.top_1}
        assert accuracies == {("b0", 75.4), ("b1", 81.1), ("b2", 82.8), ("b3", 83.9)}

    def test_what_openmmlab_serves(self):
        rows = [release for release in releases.RELEASES.values() if not release.revision]
        assert len([release for release in rows if release.head is None]) == 7
        assert len([release for release in rows if release.head == "UPerNet"]) == 6
        assert len([release for release in rows if release.head == "SemanticFPN"]) == 4
        for release in rows:
            assert re.fullmatch(r"van-b\d.*_3rdparty_.*20230522-[0-9a-f]{8}\.pth", release.file)
            assert release.file.endswith(f"-{release.sha256}.pth")
            assert re.match(f"van-{release.variant}[-_]", release.file)
            assert ("in22k" in release.file) == ("imagenet22k" in release.name)
            assert not release.head or ("_fpn_" in release.file) == (release.head == "SemanticFPN")
        doubtful = [release.name for release in rows if release.doubt]
        assert doubtful == ["upernet_b3_ade20k", "upernet_b4_ade20k"]
        assert len({release.sha256 for release in rows}) == len(rows) - 1

    def test_address(self, monkeypatch):
        # The names as printed in projects/van of mmsegmentation.
        folder = "https://download.openmmlab.com/mmsegmentation/v0.5/van_3rdparty"
        monkeypatch.delenv("OPENMMLAB_ENDPOINT", raising=False)
        address = releases.RELEASES["upernet_b2_ade20k"].address
        assert address == f"{folder}/van-b2-in1kpre_upernet_3rdparty_512x512-ade20k_20230522-19c58aee.pth"
        address = releases.RELEASES["b4_imagenet22k"].address
        assert address == f"{folder}/van-b4-in22k_3rdparty_20230522-5e31cafb.pth"
        monkeypatch.setenv("OPENMMLAB_ENDPOINT", "https://mirror.example/openmmlab/")
        assert releases.RELEASES["b4_imagenet22k"].address == (
            "https://mirror.example/openmmlab/mmsegmentation/v0.5/van_3rdparty/"
            "van-b4-in22k_3rdparty_20230522-5e31cafb.pth"
        )
        monkeypatch.setenv("OPENMMLAB_ENDPOINT", "")
        assert releases.find_openmmlab() == "https://download.openmmlab.com"

    def test_score(self):
        assert releases.RELEASES["b2_imagenet"].score == "top-1 82.8"
        assert releases.RELEASES["upernet_b2_ade20k"].score == "mIoU 49.35"
        assert releases.RELEASES["b4_imagenet22k"].score == ""

    @pytest.mark.parametrize("variant", ["b0", "b1", "b2", "b3"])
    def test_shorthand(self, variant):
        assert releases.find_release("imagenet", variant).name == f"{variant}_imagenet"

    @pytest.mark.parametrize("variant", ["b4", "b5", "b6"])
    def test_shorthand_of_the_large_variants(self, variant):
        assert releases.find_release("imagenet22k", variant).name == f"{variant}_imagenet22k"

    def test_full_name(self):
        release = releases.find_release("b2_imagenet_safetensors", "b2")
        assert release == releases.find_release("b2_imagenet_safetensors")
        assert release[2:5] == ("Visual-Attention-Network/van-base", "model.safetensors", "refs/pr/1")

    def test_unknown_name(self):
        with pytest.raises(ValueError, match=r"imagenet22k.*b0_imagenet_original.*Received: 'ade20k'"):
            releases.find_release("ade20k", "b0")

    @pytest.mark.parametrize("variant", [None, "b9"])
    def test_shorthand_without_variant(self, variant):
        with pytest.raises(ValueError, match=r"one of \['b0', 'b1', 'b2', 'b3'\].*Received: name="):
            releases.find_release("imagenet", variant)

    @pytest.mark.parametrize("variant", ["b4", "b5", "b6"])
    def test_large_variant(self, variant):
        with pytest.raises(ValueError, match=f"there is 'imagenet22k'.*pass the path.*variant='{variant}'"):
            releases.find_release("imagenet", variant)

    def test_small_variant_of_the_large_release(self):
        match = r"one of \['b4', 'b5', 'b6'\]; for the others there is 'imagenet',.*variant='b2'"
        with pytest.raises(ValueError, match=match):
            releases.find_release("imagenet22k", "b2")

    def test_other_variant(self):
        with pytest.raises(ValueError, match="holds weights of b2, not of b1"):
            releases.find_release("b2_imagenet", "b1")


class TestDownload:
    def test_whole_file_then_cache(self, serve, tmp_path):
        hub = serve()
        output, errors, code = finish(start_download(hub.port, tmp_path, TQDM_POSITION="-1"))
        assert code == 0, errors
        path = pathlib.Path(output)
        assert path.read_bytes() == CONTENT
        assert path.is_relative_to(tmp_path)
        assert "pytorch_model.bin: 100%" in errors  # the progress bar: -1 shows it without a terminal
        address = "/Visual-Attention-Network/van-tiny/resolve/main/pytorch_model.bin"
        assert hub.requests == [("HEAD", address, None), ("GET", address, None)]
        assert download(hub.port, tmp_path) == path
        assert hub.bodies() == [None]
        hub.requests.clear()
        assert download(hub.port, tmp_path, HF_HUB_OFFLINE="1") == path
        assert hub.requests == []

    def test_redirect_and_revision(self, serve, tmp_path):
        hub = serve(redirects=True)
        path = download(hub.port, tmp_path, "b2_imagenet_safetensors")
        assert path.read_bytes() == CONTENT
        address = "/Visual-Attention-Network/van-base/resolve/refs/pr/1/model.safetensors"
        assert hub.requests[0] == ("HEAD", address, None)
        assert hub.requests[-1] == ("GET", f"/storage/{hub.etag}", None)

    def test_cut_and_resumed(self, serve, tmp_path):
        # The client writes 10 MiB at a time, and asks again for what it has not written.
        content = random.Random(1).randbytes(24_000_000)
        hub = serve(content=content, cut_after=12_000_000)
        output, errors, code = finish(start_download(hub.port, tmp_path))
        assert code in (0, 3), output + errors
        if code == 3:  # before version 1 the client gives up, and resumes at the next call
            assert "call again" in output
            output = download(hub.port, tmp_path)
        assert pathlib.Path(output).read_bytes() == content
        first, second = hub.bodies()
        assert first is None
        assert re.fullmatch(r"bytes=[1-9]\d*-", second)

    def test_wrong_checksum(self, serve, tmp_path):
        hub = serve(sha256="0" * 64)
        message = fail(hub.port, tmp_path)
        assert f"SHA-256 is {hashlib.sha256(CONTENT).hexdigest()}, the hub announced {'0' * 64}" in message
        assert re.search("pytorch_model.bin is damaged.*It was deleted: call again", message)
        assert list_files(tmp_path) == []
        hub.sha256 = ""
        assert download(hub.port, tmp_path).read_bytes() == CONTENT

    def test_damaged_in_cache(self, serve, tmp_path):
        hub = serve()
        path = download(hub.port, tmp_path)
        with open(path, "r+b") as file:
            file.seek(1000)
            file.write(b"damage")
        assert "is damaged" in fail(hub.port, tmp_path, HF_HUB_OFFLINE="1")
        assert not path.exists()
        assert download(hub.port, tmp_path).read_bytes() == CONTENT
        assert len(hub.bodies()) == 2

    @pytest.mark.parametrize("difference", [-1000, 1000])
    def test_wrong_size(self, serve, tmp_path, difference):
        hub = serve(size=len(CONTENT) + difference)
        message = fail(hub.port, tmp_path)
        assert f"should be of size {len(CONTENT) + difference} but has size {len(CONTENT)}" in message
        assert f"delete {tmp_path / 'hub' / FOLDER}" in message
        assert "pytorch_model.bin" not in list_files(tmp_path)

    @pytest.mark.parametrize("error", ["Repository", "Revision", "Entry", 401, 500])
    def test_error_status(self, serve, tmp_path, error):
        # The hub tells its three kinds of 404 apart in a header.
        codes = {"Repository": "RepoNotFound", "Revision": "RevisionNotFound", "Entry": "EntryNotFound"}
        hub = serve(status=404 if error in codes else error, error_code=codes.get(error, ""))
        message = fail(hub.port, tmp_path)
        assert "download Visual-Attention-Network/van-tiny/pytorch_model.bin (revision main)" in message
        assert re.search(f"{error}NotFoundError: 404|{error} (Client|Internal|Server|Unauthorized)", message)
        assert f"http://127.0.0.1:{hub.port}" in message
        assert list_files(tmp_path) == []
        assert hub.bodies() == []

    def test_slow_server(self, serve, tmp_path):
        start = time.monotonic()
        path = download(serve(pause=0.2).port, tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="1")
        assert path.read_bytes() == CONTENT
        assert time.monotonic() - start > 1.5  # longer in total than the timeout, which only counts silence

    def test_stalled_server(self, serve, tmp_path):
        message = fail(serve(stalls=True).port, tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="1")
        assert re.search("timed out|timeout", message, re.IGNORECASE)
        assert "pytorch_model.bin" not in list_files(tmp_path)

    def test_no_server(self, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        assert re.search("Connection refused|ConnectError", fail(port, tmp_path))

    def test_offline_without_cache(self, serve, tmp_path):
        hub = serve()
        assert "OfflineModeIsEnabled" in fail(hub.port, tmp_path, HF_HUB_OFFLINE="1")
        assert hub.requests == []

    def test_cache_not_writable(self, serve, tmp_path):
        # A file instead of the folder, because permissions do not stop root, who runs tests in containers.
        (tmp_path / "hub").write_text("not a folder")
        assert re.search("NotADirectoryError|FileExistsError", fail(serve().port, tmp_path))

    def test_two_processes_at_once(self, serve, tmp_path):
        hub = serve(pause=0.15)
        processes = [start_download(hub.port, tmp_path) for _ in range(2)]
        results = [finish(process) for process in processes]
        assert [code for _, _, code in results] == [0, 0], results
        assert len({output for output, _, _ in results}) == 1
        assert pathlib.Path(results[0][0]).read_bytes() == CONTENT
        assert list_files(tmp_path) == sorted([hub.etag, "pytorch_model.bin"])


class TestOpenMMLab:
    """Files that are not on the hub but at an address; their names contain the start of their SHA-256."""

    def test_whole_file_then_cache(self, serve, tmp_path):
        hub = serve()
        settings = {"TQDM_POSITION": "-1", "HF_TOKEN": "hf_secret"}
        output, errors, code = finish(start_download(hub.port, tmp_path, *OPENMMLABS, **settings))
        assert code == 0, errors
        path = pathlib.Path(output)
        assert path.read_bytes() == CONTENT
        assert path.is_relative_to(tmp_path)
        assert "b4_imagenet22k: 100%" in errors
        assert hub.requests == [("GET", f"/{ADDRESS}", None)]
        assert hub.tokens == [None]  # the hub's token is not for others
        assert download(hub.port, tmp_path, *OPENMMLABS, HF_HUB_OFFLINE="1") == path
        assert download(hub.port, tmp_path, *OPENMMLABS) == path
        assert len(hub.requests) == 1
        assert list_parts(tmp_path) == []

    def test_mirror(self, serve, tmp_path):
        hub = serve()
        mirror = f"http://127.0.0.1:{hub.port}/a/mirror/"
        assert download(0, tmp_path, *OPENMMLABS, OPENMMLAB_ENDPOINT=mirror).read_bytes() == CONTENT
        assert hub.requests == [("GET", f"/a/mirror/{ADDRESS}", None)]

    def test_cut_and_resumed(self, serve, tmp_path):
        content = random.Random(1).randbytes(24_000_000)
        hub = serve(content=content, cut_after=12_000_000)
        arguments = "b4_imagenet22k", hub.etag[:8]
        output, errors, code = finish(start_download(hub.port, tmp_path, *arguments))
        assert code in (0, 3), output + errors
        if code == 3:  # before version 1 the client gives up, and resumes at the next call
            assert "call again" in output
            output = download(hub.port, tmp_path, *arguments)
        assert pathlib.Path(output).read_bytes() == content
        first, second = hub.bodies()
        assert first is None
        assert re.fullmatch(r"bytes=[1-9]\d*-", second)

    def test_killed_and_resumed(self, serve, tmp_path):
        content = random.Random(2).randbytes(24_000_000)
        hub = serve(content=content, pause=0.3)
        arguments = hub.port, tmp_path, "b4_imagenet22k", hub.etag[:8]
        process = start_download(*arguments)
        deadline = time.monotonic() + 40
        while not any(path.stat().st_size for path in list_parts(tmp_path)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        process.communicate()
        hub.pause = 0
        assert download(*arguments).read_bytes() == content
        assert re.fullmatch(r"bytes=[1-9]\d*-", hub.bodies()[1])

    def test_killed_when_all_was_there(self, serve, tmp_path):
        hub = serve()
        write_part(tmp_path, CONTENT)
        assert download(hub.port, tmp_path, *OPENMMLABS).read_bytes() == CONTENT
        assert hub.bodies() == [f"bytes={len(CONTENT)}-"]

    def test_broken_part(self, serve, tmp_path):
        hub = serve()
        write_part(tmp_path, b"x" * 1000)
        message = fail(hub.port, tmp_path, *OPENMMLABS)
        assert f"the published name says {OPENMMLABS[1]}" in message
        assert download(hub.port, tmp_path, *OPENMMLABS).read_bytes() == CONTENT
        assert hub.bodies() == ["bytes=1000-", None]

    def test_server_without_ranges(self, serve, tmp_path):
        hub = serve(ignores_range=True)
        write_part(tmp_path, CONTENT[:1000])
        output, errors, code = finish(start_download(hub.port, tmp_path, *OPENMMLABS))
        assert code in (0, 3), output + errors
        if code == 3:  # before 0.36, the client appends the whole file to the part
            assert "It was deleted: call again" in output
            output = download(hub.port, tmp_path, *OPENMMLABS)
        assert pathlib.Path(output).read_bytes() == CONTENT

    def test_wrong_checksum(self, serve, tmp_path):
        hub = serve()
        message = fail(hub.port, tmp_path, "b4_imagenet22k", "0" * 8)
        assert re.search(
            r"5e31cafb\.pth is damaged: its SHA-256 is \w+, the published name says 0{8}", message
        )
        assert "It was deleted: call again" in message
        assert download(hub.port, tmp_path, *OPENMMLABS).read_bytes() == CONTENT
        assert hub.bodies() == [None, None]

    def test_damaged_in_cache(self, serve, tmp_path):
        hub = serve()
        path = download(hub.port, tmp_path, *OPENMMLABS)
        path.write_bytes(CONTENT[:-1])
        assert "is damaged" in fail(hub.port, tmp_path, *OPENMMLABS, HF_HUB_OFFLINE="1")
        assert not path.exists()
        assert download(hub.port, tmp_path, *OPENMMLABS).read_bytes() == CONTENT

    @pytest.mark.parametrize("status", [403, 404, 500])
    def test_error_status(self, serve, tmp_path, status):
        hub = serve(status=status)
        message = fail(hub.port, tmp_path, *OPENMMLABS)
        assert f"could not download http://127.0.0.1:{hub.port}/{ADDRESS}: " in message
        assert str(status) in message
        assert f"set OPENMMLAB_ENDPOINT to a mirror (it is http://127.0.0.1:{hub.port})" in message
        assert f"delete {tmp_path / 'assets' / 'van_backbones'}" in message

    def test_stalled_server(self, serve, tmp_path):
        message = fail(serve(stalls=True).port, tmp_path, *OPENMMLABS, HF_HUB_DOWNLOAD_TIMEOUT="1")
        assert re.search("timed out|timeout", message, re.IGNORECASE)

    def test_no_server(self, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        assert re.search("Connection refused|ConnectError", fail(port, tmp_path, *OPENMMLABS))

    def test_offline_without_cache(self, serve, tmp_path):
        hub = serve()
        assert "OfflineModeIsEnabled" in fail(hub.port, tmp_path, *OPENMMLABS, HF_HUB_OFFLINE="1")
        assert hub.requests == []

    def test_cache_not_writable(self, serve, tmp_path):
        (tmp_path / "assets").write_text("not a folder")
        assert "because of an existing file" in fail(serve().port, tmp_path, *OPENMMLABS)

    def test_two_processes_at_once(self, serve, tmp_path):
        hub = serve(pause=0.15)
        processes = [start_download(hub.port, tmp_path, *OPENMMLABS) for _ in range(2)]
        results = [finish(process) for process in processes]
        assert [code for _, _, code in results] == [0, 0], results
        assert pathlib.Path(results[0][0]).read_bytes() == CONTENT
        assert len(hub.bodies()) == 1


class TestHashPrintedTwice:
    """UPerNets of b3 and b4: one of the two names contains the other's hash."""

    def download(self, monkeypatch, path):
        monkeypatch.setattr(releases, "_fetch_from_openmmlab", lambda release: str(path))
        return releases.download(releases.RELEASES["upernet_b4_ade20k"])

    def test_a_checkpoint_of_another_hash_is_taken_with_a_warning(self, monkeypatch, tmp_path):
        torch = pytest.importorskip("torch")
        path = tmp_path / "weights.pth"
        torch.save({"state_dict": {"a": torch.zeros(3)}}, path, _use_new_zipfile_serialization=False)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        with pytest.warns(UserWarning, match=f"is {found}, .* says 653bd6b7: OpenMMLab's README .* b4, so"):
            assert self.download(monkeypatch, path) == str(path)
        monkeypatch.setitem(
            releases.RELEASES,
            "upernet_b4_ade20k",
            releases.RELEASES["upernet_b4_ade20k"]._replace(sha256=found[:8]),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert self.download(monkeypatch, path) == str(path)

    def test_what_is_no_checkpoint_is_damaged(self, monkeypatch, tmp_path):
        path = tmp_path / "weights.pth"
        path.write_bytes(b"<!DOCTYPE html>")
        with pytest.raises(releases.DownloadError, match=r"is damaged.*It was deleted"):
            self.download(monkeypatch, path)
        assert not path.exists()


class TestCacheLayouts:
    """What a small hub cannot show: other layouts of the cache, other errors of the client."""

    def download(self, monkeypatch, result):
        """Returns the result of `download` for a path or an error from the hub's client."""

        def hf_hub_download(**arguments):
            if isinstance(result, BaseException):
                raise result
            return str(result)

        monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
        return releases.download(releases.RELEASES["b0_imagenet"])

    def build_shared(self, folder, content):
        """Returns pointer, blob and file of a blob that two repositories share, as in the newest client."""
        pointer = folder / "models--a--b" / "snapshots" / COMMIT / "weights.bin"
        blob = folder / "models--a--b" / "blobs" / hashlib.sha256(CONTENT).hexdigest()
        file = folder / "blobs" / "ab" / ("ab" * 32)
        for path in (pointer, blob, file):
            path.parent.mkdir(parents=True)
        file.write_bytes(content)
        blob.symlink_to(os.path.relpath(file, blob.parent))
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        return pointer, blob, file

    def test_shared_blob(self, monkeypatch, tmp_path):
        pointer = self.build_shared(tmp_path, CONTENT)[0]
        assert self.download(monkeypatch, pointer) == str(pointer)

    def test_damaged_shared_blob(self, monkeypatch, tmp_path):
        paths = self.build_shared(tmp_path, CONTENT[:-1])
        with pytest.raises(releases.DownloadError, match="It was deleted"):
            self.download(monkeypatch, paths[0])
        assert [path for path in paths if os.path.lexists(path)] == []

    def test_damaged_and_not_deletable(self, monkeypatch, tmp_path):
        pointer, _, file = self.build_shared(tmp_path, b"")

        def refuse(path):
            raise PermissionError("read-only file system")

        monkeypatch.setattr(os, "unlink", refuse)
        with pytest.raises(releases.DownloadError, match=f"read-only file system.*delete {file} by hand"):
            self.download(monkeypatch, pointer)

    @pytest.mark.parametrize("name", ["weights.bin", "0" * 40])
    def test_nothing_to_compare(self, monkeypatch, tmp_path, name):
        (tmp_path / name).write_bytes(CONTENT)
        assert self.download(monkeypatch, tmp_path / name) == str(tmp_path / name)

    def test_other_errors(self, monkeypatch):
        with pytest.raises(releases.DownloadError, match="RuntimeError: Xet says no") as raised:
            self.download(monkeypatch, RuntimeError("Xet says no"))
        assert isinstance(raised.value.__cause__, RuntimeError)

    def test_interrupt(self, monkeypatch):
        with pytest.raises(KeyboardInterrupt):
            self.download(monkeypatch, KeyboardInterrupt())


USE = """
import sys
import numpy as np
from van_backbones import VANBackbone, VANClassifier
from van_backbones.checkpoints.__main__ import main
images = np.load(sys.argv[1])
np.save(sys.argv[2], VANClassifier("b0", weights="imagenet")(images))
VANBackbone("b0", weights="imagenet")
sys.exit(main(["download", "b0_imagenet"]))
"""


USE_SEGMENTER = """
import sys
import numpy as np
from heads import SemanticFPN
from van_backbones.checkpoints import releases
name = "semantic_fpn_b0_ade20k"
releases.RELEASES[name] = releases.RELEASES[name]._replace(sha256=sys.argv[3])
model = SemanticFPN.from_release(name)
np.save(sys.argv[2], model(np.load(sys.argv[1])))
print(len(model.class_names), model.class_names[-1], model.backbone.layer_norm_epsilon)
"""


@pytest.mark.slow
def test_from_the_server_to_the_segmenter(serve, tmp_path):
    """`SemanticFPN.from_release`: OpenMMLab's file over HTTP, its weights, class names and epsilon."""
    torch = pytest.importorskip("torch")
    from contracts import shake_weights

    from heads import SemanticFPN
    from van_backbones import VANBackbone
    from van_backbones.checkpoints import to_state_dict

    model = SemanticFPN(VANBackbone("b0", layer_norm_epsilon=1e-5), num_classes=150)
    shake_weights(model)
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in to_state_dict(model).items()}
    torch.save({"meta": {}, "state_dict": tensors}, tmp_path / "segmenter.pth")
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 96, 3)).astype("float32")
    np.save(tmp_path / "images.npy", images)
    hub = serve(content=(tmp_path / "segmenter.pth").read_bytes())

    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path), "OPENMMLAB_ENDPOINT": f"http://127.0.0.1:{hub.port}"}
    arguments = [tmp_path / "images.npy", tmp_path / "logits.npy", hub.etag[:8]]
    command = [sys.executable, "-c", USE_SEGMENTER, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.splitlines()[-1] == "150 flag 1e-05"
    assert "van-b0-in1kpre_fpn_3rdparty_512x512-ade20k_20230522-75a76298.pth" in hub.requests[0][1]
    expected = np.asarray(model(images))
    difference = np.abs(np.load(tmp_path / "logits.npy") - expected).max()
    assert difference <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_from_the_hub_to_the_logits(serve, tmp_path):
    """What users do: `weights="imagenet"`, then the same from the cache, then the command line."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="4.57")
    config = transformers.VanConfig(
        hidden_sizes=[32, 64, 160, 256], depths=[3, 3, 5, 2], mlp_ratios=[8, 8, 4, 4], num_labels=1000
    )
    reference = transformers.VanForImageClassification(config).eval()
    torch.save(reference.state_dict(), tmp_path / "pytorch_model.bin")
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 96, 3)).astype("float32")
    np.save(tmp_path / "images.npy", images)
    hub = serve(content=(tmp_path / "pytorch_model.bin").read_bytes())

    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{hub.port}"}
    command = [sys.executable, "-c", USE, tmp_path / "images.npy", tmp_path / "logits.npy"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=True)
    assert FOLDER in done.stdout
    assert len(hub.bodies()) == 1
    with torch.no_grad():
        inputs = torch.from_numpy(((images - 127.5) / 127.5).transpose(0, 3, 1, 2).copy())
        expected = reference(inputs).logits.numpy()
    difference = np.abs(np.load(tmp_path / "logits.npy") - expected).max()
    assert difference <= 2e-5 * np.abs(expected).max()
