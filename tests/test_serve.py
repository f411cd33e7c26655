"""The web page of a saved model: its options, and what it does in a real browser."""

import argparse
import asyncio
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import keras
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import contracts
import serve
from served_pictures import Seen
from small_models import build

from heads import EDN, Resizing, RetinaNet, SimpleBaseline

SCRIPT = pathlib.Path(serve.__file__)
SCENE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), "uint8")
OBJECTS = {
    "path": None,
    "boxes": np.array([[4, 4, 30, 40], [40, 10, 70, 50.0]]),
    "scores": np.array([0.9, 0.4]),
    "labels": np.array([1, 0]),
    "names": ["dog", "cat"],
}


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "model.keras"
    path.touch()
    return path


# Options: all of these are answered before Keras is loaded.


def test_the_page_is_for_this_machine_alone_unless_it_is_told_otherwise(model_file):
    _, arguments = serve.parse_arguments([str(model_file)])
    assert (arguments.host, arguments.port, arguments.max_megabytes) == ("127.0.0.1", None, 20)
    _, arguments = serve.parse_arguments([str(model_file), "--host", "0.0.0.0", "--no-open"])
    assert (arguments.host, arguments.open) == ("0.0.0.0", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["none.keras"], "there is no model none.keras"),
        (["model.h5"], "must be a .keras file, as training writes it. Received: model.h5"),
        (["model.keras", "--score-threshold", "1.5"], "--score-threshold must be 0 .. 1. Received: 1.5"),
        (["model.keras", "--port", "70000"], "must be a whole number, 1 .. 65535. Received: '70000'"),
        (["model.keras", "--max-megapixels", "90"], "must be a whole number, 1 .. 89. Received: '90'"),
        (["model.keras", "--max-megabytes", "0"], "must be a whole number, at least 1. Received: '0'"),
        (["model.keras", "--detector", "none.keras"], "there is no model none.keras"),
    ],
)
def test_wrong_options(options, message, model_file, monkeypatch, capsys):
    monkeypatch.chdir(model_file.parent)
    pathlib.Path("model.h5").touch()
    with pytest.raises(SystemExit):
        serve.parse_arguments(options)
    assert message in capsys.readouterr().err


def test_without_gradio_it_tells_what_to_install(model_file, monkeypatch, capsys):
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        serve.parse_arguments([str(model_file)])
    assert "pip install 'van-backbones[serve]'" in capsys.readouterr().err


def test_a_browser_is_opened_where_somebody_sees_it(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert not serve.has_screen()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert serve.has_screen()
    monkeypatch.setenv("SSH_CONNECTION", "1 2 3 4")
    assert not serve.has_screen()


def test_ports(capsys):
    parser = argparse.ArgumentParser()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit):
            serve.choose_port(parser, "127.0.0.1", port)
        assert f"--port one that is free. Received: 127.0.0.1, {port} (" in capsys.readouterr().err
    assert serve.choose_port(parser, "127.0.0.1", port) == port
    assert serve.choose_port(parser, "127.0.0.1", None) in serve.PORTS
    with pytest.raises(SystemExit):
        serve.choose_port(parser, "192.0.2.1", None)  # an address for documentation, which no machine has
    assert "must be an address of this machine" in capsys.readouterr().err


# Models.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty, 0 bytes: download or copy it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"\x00\x01\x02\x03" * 100, "cannot be loaded: "),
    ],
)
def test_files_that_are_no_models(content, message, model_file, capsys):
    model_file.write_bytes(content)
    with pytest.raises(SystemExit):
        serve.load_model(argparse.ArgumentParser(), model_file)
    assert f"the model must be a .keras file that training or `model.save` wrote. {model_file} {message}" in (
        capsys.readouterr().err
    )


def test_models_that_see_no_pictures(model_file, capsys):
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(model_file)
    with pytest.raises(SystemExit):
        serve.load_model(argparse.ArgumentParser(), model_file)
    assert (
        f"a pose or a saliency model. Received: {model_file}, of the class Sequential"
        in capsys.readouterr().err
    )


def run_main(monkeypatch, model, *options, detector=None):
    """Runs the script with a model; returns what it would have served: (model, look, blank, arguments)."""
    pages = []
    models = {options[0]: model} if detector is None else {options[0]: model, options[-1]: detector}
    monkeypatch.setattr(serve.keras.saving, "load_model", lambda path, compile: models[path])
    monkeypatch.setattr(serve.signal, "signal", lambda *args: None)
    monkeypatch.setattr(serve.os, "environ", dict(os.environ))
    monkeypatch.setattr(serve.tempfile, "tempdir", None)
    monkeypatch.setattr(serve, "build_page", lambda *args: pages.append(args))
    monkeypatch.setattr(serve, "launch", lambda page, arguments, port: None)
    serve.main([*map(str, options), "--no-open"])
    return pages[0]


def test_a_detector_is_for_people_alone(model_file, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_main(monkeypatch, EDN(contracts.PooledBackbone()), model_file, "--detector", model_file)
    assert (
        f"--detector is for pose models. Received: {model_file}, of the class EDN" in capsys.readouterr().err
    )


def test_without_a_detector_each_picture_is_one_person(model_file, monkeypatch):
    model = SimpleBaseline(contracts.PooledBackbone(), 3, 8, resizing=Resizing(image_size=(64, 48)))
    _, look, blank, _ = run_main(monkeypatch, model, model_file)
    assert blank["keypoints"].shape == (1, 3, 2)
    np.testing.assert_array_equal(look(SCENE, "a.png").result["boxes"], [[0, 0, 80, 60]])


def test_people_are_those_that_the_detector_finds(model_file, monkeypatch):
    class People:
        class_names = ("dog", "person")

        def predict_pictures(self, image, score_threshold):
            assert score_threshold == 0.3
            return [{name: OBJECTS[name] for name in ("boxes", "scores", "labels")}]

    (model_file.parent / "detector.keras").touch()
    options = (model_file, "--detector", model_file.parent / "detector.keras")
    model = SimpleBaseline(contracts.PooledBackbone(), 3, 8, resizing=Resizing(image_size=(64, 48)))
    _, look, _, _ = run_main(monkeypatch, model, *options, detector=People())
    np.testing.assert_array_equal(look(SCENE, "a.png").result["boxes"], OBJECTS["boxes"][:1])


# The page, without a server.


class Detector:
    """Stands in for a model."""

    num_classes = 2
    class_names = ("cat", "dog")
    score_threshold = 0.05


class Page:
    """Returns the page of a model that finds `OBJECTS`, and the pictures that the model saw."""

    def __init__(self, folder, *options, result=OBJECTS, model=None):
        pytest.importorskip("gradio", reason="the page is made with it")
        (folder / "model.keras").touch()
        self.folder, self.looks, self.result, self.model = folder, [], result, model or Detector()
        _, arguments = serve.parse_arguments([str(folder / "model.keras"), *options])
        self.blocks = asyncio.run(self.build(arguments))
        functions = {entry.name: entry for entry in self.blocks.fns.values()}
        self.take_picture, self.show = functions["take_picture"], functions["show"]

    async def build(self, arguments):
        # In an event loop, because gradio would make its own otherwise, which it never closes.
        return serve.build_page(self.model, self.look, self.result, arguments)

    def look(self, image, name):
        self.looks.append(name)
        return Seen(name, image, self.result)

    def upload(self, name, image=SCENE):
        path = self.folder / name
        Image.fromarray(image).save(path)
        return path

    def find(self, kind):
        return next(block for block in self.blocks.blocks.values() if type(block).__name__ == kind)


@pytest.fixture
def warnings_shown(monkeypatch):
    gradio = pytest.importorskip("gradio", reason="the page is made with it")
    shown = []
    monkeypatch.setattr(gradio, "Warning", lambda text, **options: shown.append(text))
    return shown


def test_the_slider_redraws_without_the_network(tmp_path):
    page = Page(tmp_path)
    path = page.upload("a.png")
    file, seen, _, drawing, rows, text = page.take_picture.fn(str(path), 0.3)
    assert (file, text) == (None, "a.png")  # ready for the next picture
    assert rows == [["dog", "0.90"], ["cat", "0.40"]]
    assert not path.exists()
    fewer, rows, _ = page.show.fn(seen, 0.5)
    assert rows == [["dog", "0.90"]]
    assert (np.asarray(fewer) != drawing[: len(fewer), : fewer.shape[1]]).any()
    assert page.show.fn(seen, 0.95)[1] == []
    assert page.looks == ["a.png"]


def test_the_slider_before_a_picture(tmp_path):
    assert Page(tmp_path).show.fn(None, 0.5) == (None, [], "Drop a picture first")


def test_unusable_pictures_give_a_message(tmp_path, warnings_shown):
    page = Page(tmp_path, "--max-megapixels", "1")
    (tmp_path / "<b>.png").write_bytes(b"no picture")
    *_, rows, text = page.take_picture.fn(str(tmp_path / "<b>.png"), 0.3)
    assert (rows, text) == ([], "<b>.png: cannot be read (not a picture, or its header is damaged)")
    large = page.upload("large.png", np.zeros((1001, 1000, 3), "uint8"))
    *_, text = page.take_picture.fn(str(large), 0.3)
    limit = "a picture must have at most 1 million pixels (--max-megapixels). Received: 1000 x 1001"
    assert text == f"large.png: {limit}"
    assert warnings_shown[0].startswith("&lt;b&gt;.png: ")  # gradio shows the message as HTML
    assert page.looks == []
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


def test_a_model_that_fails_gives_a_message_and_the_reason_in_the_terminal(tmp_path, warnings_shown, capsys):
    page = Page(tmp_path, result={**OBJECTS, "boxes": np.zeros((1, 4))})
    *_, text = page.take_picture.fn(str(page.upload("a.png")), 0.3)
    assert text == "a.png: the model failed. The terminal says why"
    assert warnings_shown == [text]
    assert "detections must be those of one image" in capsys.readouterr().err


def test_one_picture_at_a_time_and_nothing_for_programs(tmp_path):
    page = Page(tmp_path)
    assert page.take_picture.concurrency_limit == 1
    assert {page.take_picture.api_visibility, page.show.api_visibility} == {"private"}
    assert page.find("State").value is None  # each visitor has a copy of it


@pytest.mark.parametrize(
    ("options", "start"), [([], 0.3), (["--score-threshold", "0.01"], 0.05), (["--score-threshold", "1"], 1)]
)
def test_where_the_slider_starts(tmp_path, options, start):
    slider = Page(tmp_path, *options).find("Slider")
    assert (slider.minimum, slider.value, slider.visible) == (0.05, start, True)


def test_label_maps_have_no_slider(tmp_path):
    result = {"path": None, "label_map": np.zeros((60, 80), "int32")}
    page = Page(tmp_path, result=result)
    assert not page.find("Slider").visible
    assert page.take_picture.fn(str(page.upload("a.png")), 0.3)[4] == [["cat", "100.0"]]
    assert page.find("Dataframe").headers == ["class", "% of pixels"]


def test_a_pose_model_alone_tells_that_pictures_are_people(tmp_path):
    people = {
        "path": None,
        "boxes": np.zeros((1, 4)),
        "keypoints": np.zeros((1, 3, 2)),
        "scores": np.ones((1, 3)),
    }
    model = SimpleBaseline(contracts.PooledBackbone(), 3, 8, resizing=Resizing(image_size=(64, 48)))

    def list_texts(*options):
        blocks = Page(tmp_path, *options, result=people, model=model).blocks.blocks.values()
        return [block.value for block in blocks if type(block).__name__ == "Markdown"]

    assert list_texts()[1].startswith("Each picture counts as one person")
    assert len(list_texts("--detector", str(tmp_path / "model.keras"))) == 1


# In a browser.

CHROMIUM, DRIVER = (
    next(filter(None, map(shutil.which, names)), None)
    for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
)
SECONDS = 120  # for the server and the page, on a busy machine


def wait_for(condition, what):
    """Returns what a condition returns, as soon as that is true."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    pytest.fail(f"no {what} within {SECONDS} s")


def find_free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Starts the real program with a small detector: (its process, address and folder of temporary files)."""
    pytest.importorskip("gradio", reason="the page is made with it")
    folder = tmp_path_factory.mktemp("serve")
    build(RetinaNet, num_classes=2, channels=8, class_names=("cat", "dog")).save(folder / "model.keras")
    (folder / "temporary").mkdir()
    environment = {**os.environ, "TMPDIR": str(folder / "temporary"), "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = str(SCRIPT.parents[1])
    port = find_free_port()
    command = [sys.executable, SCRIPT, folder / "model.keras", "--port", port, "--no-open"]
    command += ["--max-megabytes", 1, "--max-megapixels", 1]
    with (
        open(folder / "printed.txt", "w+") as printed,
        subprocess.Popen(list(map(str, command)), env=environment, stdout=printed, stderr=printed) as process,
    ):

        def is_there():
            assert process.poll() is None, (folder / "printed.txt").read_text()
            return "The page is at" in (folder / "printed.txt").read_text()

        wait_for(is_there, "server")
        yield process, f"http://127.0.0.1:{port}/", folder / "temporary"
        process.kill()


class Browser:
    """Starts a headless Chromium with the page."""

    def __init__(self, address):
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in (
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--window-size=1300,900",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        self.address = address
        self.open()

    def open(self):
        self.driver.get(self.address)
        wait_for(lambda: self.find("#file input[type=file]"), "page")

    def find(self, selector):
        found = self.driver.find_elements("css selector", selector)
        return found[0] if found else None

    def upload(self, path):
        wait_for(lambda: self.find("#file input[type=file]"), "place for a picture").send_keys(str(path))

    # In one step each: between two steps, the page may replace its elements.

    def read(self, expression):
        return self.driver.execute_script(f"return {expression}")

    def read_message(self):
        return self.read("document.querySelector('#message textarea').value")

    def read_rows(self):
        cells = "document.querySelectorAll('#table [data-testid^=cell-]')"
        return self.read(f"[...{cells}].map(cell => cell.innerText.trim()).filter(text => text)")

    def find_drawing(self):
        return self.read("document.querySelector('#drawing img')?.src")

    def measure_drawing(self):
        """Returns the width of the drawing in its own pixels."""
        return self.read("document.querySelector('#drawing img').naturalWidth")

    def set_threshold(self, value):
        number = self.find("#slider input[type=number]")
        number.clear()
        number.send_keys(value, "\n")

    def list_requests(self):
        messages = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        sent = (each for each in messages if each["method"] == "Network.requestWillBeSent")
        return [each["params"]["request"]["url"] for each in sent]


@pytest.fixture(scope="module")
def browser(server):
    pytest.importorskip("selenium", reason="it drives the browser")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    browser = Browser(server[1])
    yield browser
    browser.driver.quit()


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.kron(SCENE, np.ones((4, 4, 1), "uint8"))).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


@pytest.mark.slow
def test_a_picture_is_drawn_and_the_slider_hides_objects(browser, server, picture):
    browser.upload(picture)
    drawing = wait_for(browser.find_drawing, "drawing")
    wait_for(lambda: browser.read_message().startswith("scene.png: 320 x 240 pixels, "), "text")
    assert browser.measure_drawing() >= 320
    wait_for(browser.read_rows, "table")
    assert set(browser.read_rows()[::2]) <= {"cat", "dog"}
    browser.set_threshold("1")
    wait_for(lambda: browser.find_drawing() != drawing, "other drawing")
    wait_for(lambda: not browser.read_rows(), "empty table")
    browser.set_threshold("0.1")
    wait_for(browser.read_rows, "table again")
    # Uploads are deleted already; drawings are deleted later, with the program.
    assert not list(server[2].rglob("scene*"))


@pytest.mark.slow
def test_the_page_needs_nothing_from_elsewhere(browser, server):
    browser.open()
    requests = [url for url in browser.list_requests() if not url.startswith(("data:", "blob:", "about:"))]
    assert len(requests) > 10
    assert [url for url in requests if not url.startswith(server[1])] == []
    with urllib.request.urlopen(server[1]) as answer:
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    # No request to another machine leaves the browser.
    program = (
        "const done = arguments[0]; document.addEventListener('securitypolicyviolation', () => done(1));"
    )
    program += "fetch('http://127.0.0.2/').catch(() => 0)"
    assert browser.driver.execute_async_script(program) == 1


@pytest.mark.slow
def test_pictures_that_are_refused(browser, tmp_path):
    browser.open()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    browser.upload(tmp_path / "broken.png")
    wait_for(
        lambda: browser.read_message().startswith("broken.png: cannot be read (not a picture"), "message"
    )
    Image.fromarray(np.zeros((1001, 1000, 3), "uint8")).save(tmp_path / "wide.png")
    browser.upload(tmp_path / "wide.png")
    wait_for(lambda: "at most 1 million pixels" in browser.read_message(), "message on the size")
    random = np.random.default_rng(0).integers(0, 256, (700, 700, 3), "uint8")
    Image.fromarray(random).save(tmp_path / "heavy.png")
    assert (tmp_path / "heavy.png").stat().st_size > 2**20
    browser.upload(tmp_path / "heavy.png")
    wait_for(lambda: "exceed the maximum allowed size of 1.0 Mb" in browser.find("body").text, "refusal")
    assert browser.find_drawing() is None


@pytest.mark.slow
def test_two_visitors_do_not_mix(browser, picture, tmp_path):
    browser.open()
    driver, first = browser.driver, browser.driver.current_window_handle
    browser.upload(picture)
    wait_for(browser.read_rows, "table")
    driver.switch_to.new_window("window")
    browser.open()
    Image.fromarray(SCENE[:40]).save(tmp_path / "other.png")
    browser.upload(tmp_path / "other.png")
    wait_for(lambda: browser.read_message().startswith("other.png: 80 x 40"), "second visitor's picture")
    driver.switch_to.window(first)
    browser.set_threshold("0.9")
    wait_for(lambda: not browser.read_rows(), "empty table")
    assert browser.read_message().startswith("scene.png: 320 x 240")
    assert browser.measure_drawing() >= 320
    driver.switch_to.window(driver.window_handles[1])
    assert browser.read_rows()


def post_file(address, size):
    """Returns the status of the answer to an upload of this many bytes, past the page's own check."""
    start = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    body = start + bytes(size) + b"\r\n--b--\r\n"
    request = urllib.request.Request(f"{address}gradio_api/upload", body, headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_the_server_itself_limits_uploads(server):
    assert post_file(server[1], 1000) == 200
    assert post_file(server[1], 2**20 + 1) == 413


def list_other_addresses():
    """Returns this machine's addresses, without 127.0.0.1."""
    found = {entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            found.add(probe.getsockname()[0])
        except OSError:
            pass
    if sys.platform == "linux":
        found.add("127.0.0.2")  # like another machine, for sockets
    return found - {"127.0.0.1"}


@pytest.mark.slow
def test_no_other_address_of_the_machine_answers(server):
    port = int(server[1].rstrip("/").rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port), 5).close()
    others = list_other_addresses()
    if not others:
        pytest.skip("this machine has no other address")
    for address in others:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, port), 5)


@pytest.mark.slow
def test_other_names_of_this_machine_are_refused(server):
    """Pages whose own name points to 127.0.0.1 would bypass the browser's rules and reach the server."""
    request = urllib.request.Request(server[1], headers={"Host": "attacker.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)


@pytest.mark.slow
def test_nothing_is_left_at_the_end(server):
    """The last test, because it ends the server."""
    process, address, folder = server
    with socket.create_connection(address.removeprefix("http://").rstrip("/").split(":"), 5) as connection:
        # An interrupted upload.
        head = "POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n"
        head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        head += 'Content-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nbytes'
        connection.sendall(head.encode())
        wait_for(lambda: [path for path in folder.rglob("tmp*") if path.is_file()], "file in progress")
    assert {path.name[:13] for path in folder.iterdir()} == {"van-backbones"}
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 128 + signal.SIGTERM
    assert list(folder.iterdir()) == []
