"""Opens a local web page that shows what a saved model sees in a picture.

    python examples/serve.py runs/detection-1/best.keras
    python examples/serve.py runs/pose-1/best.keras --detector runs/detection-1/best.keras

The page shows a dropped picture with its boxes, masks, segments, classes, keypoints or saliency, and a table
of them; a slider hides low scores. It asks for no password, so only this machine can open it, unless --host
says otherwise. `pip install 'van-backbones[serve]'` installs what it needs.
"""

import argparse
import importlib.util
import os
import pathlib
import socket
import sys

from options import check_model, load_keras, make_parser, number, whole_number

LOOPBACK = ("127.0.0.1", "localhost")
PORTS = range(7860, 7960)  # gradio's
MOST_MEGAPIXELS = 89  # beyond that Pillow warns of pictures that are made to fill the memory


def parse_arguments(argv=None):
    """Returns the parser, for further errors, and the settings."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("model", type=pathlib.Path, help="a .keras file, of any head")
    threshold = "initial position of the slider, 0 .. 1; default: %(default)s"
    add("--score-threshold", type=number(at_least=0), default=0.3, help=threshold)
    people = "a .keras file of a detector that finds the people of a pose model; default: each picture is one"
    add("--detector", type=pathlib.Path, help=people)
    name = "name of the detector's class of people; default: %(default)s"
    add("--class-name", default="person", help=name)
    boxes = "leave out people whose boxes have lower scores; default: %(default)s"
    add("--box-threshold", type=number(at_least=0), default=0.3, help=boxes)
    host = "address of the page; 0.0.0.0 lets in the whole network; default: %(default)s"
    add("--host", default=LOOPBACK[0], help=host)
    port = f"port of the page; default: the first free one from {PORTS[0]} on"
    add("--port", type=whole_number(1, 65535), help=port)
    megabytes = "limit of a picture's file; default: %(default)s"
    add("--max-megabytes", type=whole_number(1), default=20, metavar="MEGABYTES", help=megabytes)
    megapixels = "limit of a picture's size, in millions of pixels; default: %(default)s"
    most = whole_number(1, MOST_MEGAPIXELS)
    add("--max-megapixels", type=most, default=16, metavar="MEGAPIXELS", help=megapixels)
    browser = "whether to open the page in a browser; default: if this machine has a screen"
    add("--open", action=argparse.BooleanOptionalAction, default=has_screen(), help=browser)
    arguments = parser.parse_args(argv)
    arguments.boxes = None  # people come from the detector only: see `choose_boxes`
    if arguments.score_threshold > 1:
        parser.error(f"--score-threshold must be 0 .. 1. Received: {arguments.score_threshold}")
    check_model(parser, arguments.model)
    if arguments.model.suffix != ".keras":
        parser.error(f"the model must be a .keras file, as training writes it. Received: {arguments.model}")
    if arguments.detector is not None:
        check_model(parser, arguments.detector)
    if importlib.util.find_spec("gradio") is None:
        parser.error("the page needs gradio, which is not installed: pip install 'van-backbones[serve]'")
    return parser, arguments


def has_screen():
    """Returns whether anybody would see a browser that is opened here."""
    if "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform in ("darwin", "win32") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())


if __name__ == "__main__":
    parse_arguments()  # before Keras is loaded: --help and mistakes are answered at once
    load_keras()

import functools
import html
import signal
import tempfile
import time
import traceback
import warnings

import keras
import numpy as np
from predict_pose import choose_boxes
from served_pictures import (
    UnusablePictureError,
    draw,
    look_at,
    name_classes,
    open_picture,
    reduce_size,
    tabulate,
)

import van_backbones  # noqa: F401  (registers the backbone's classes, which the saved model names)
from heads import SimpleBaseline
from heads.pictures import RGB_CHANNELS
from van_backbones.checkpoints.file_kinds import describe_file

THUMBNAIL_SIDE = 400
MOST_VISITORS = 20  # whose pictures are kept: about 20 MB each
SECONDS_KEPT = 3600
MOST_WAITING = 20  # pictures in front of the network
FONTS = ["system-ui", "sans-serif"]  # of the browser's machine: nothing is downloaded
# Browsers fetch nothing from elsewhere for this page, whatever gradio's code names, and embed it in no other.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"


def main(argv=None):
    """Runs the script until it is interrupted."""
    parser, arguments = parse_arguments(argv)
    port = choose_port(parser, arguments.host, arguments.port)
    print(f"Loading {arguments.model} and building its network ...", flush=True)
    model = load_model(parser, arguments.model)
    find_boxes = None
    if isinstance(model, SimpleBaseline):
        find_boxes = choose_boxes(parser, arguments)
    elif arguments.detector is not None:
        received = f"{arguments.model}, of the class {type(model).__name__}"
        parser.error(f"--detector is for pose models. Received: {received}")
    look = functools.partial(look_at, model, find_boxes)
    # Visitors should not wait for graphs to be traced: the second size makes one for all sizes on TensorFlow.
    blanks = [look(np.full((*size, 3), 128, "uint8"), "") for size in ((256, 320), (320, 256))]

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="van-backbones-", ignore_cleanup_errors=True) as folder:
        # Uploads, also interrupted ones, and drawings are kept there and deleted with it. gradio reads the
        # variables when it is imported.
        tempfile.tempdir = folder
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        page = build_page(model, look, blanks[0].result, arguments)
        launch(page, arguments, port)


def choose_port(parser, host, port):
    """Returns a free port; ends the program if there is none, or the host is not this machine."""
    problem = None
    for candidate in PORTS if port is None else [port]:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            if os.name == "posix":  # elsewhere a port in use would seem to be free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
                return candidate
            except OSError as error:
                problem = error.strerror
    received = f"{host}, {port or f'{PORTS[0]} .. {PORTS[-1]}'} ({problem})"
    parser.error(f"--host must be an address of this machine, --port one that is free. Received: {received}")


def load_model(parser, path):
    """Returns the model of a file; ends the program if it is not one that predicts pictures."""
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # of many kinds, depending on what the file is
        first_line = str(error).strip().partition("\n")[0]
        reason = describe_file(path) or f"cannot be loaded: {first_line[:300]}"
        parser.error(f"the model must be a .keras file that training or `model.save` wrote. {path} {reason}")
    if not hasattr(model, "predict_pictures"):
        kinds = "a segmenter, a detector, a pose or a saliency model"
        received = f"{path}, of the class {type(model).__name__}"
        parser.error(f"the model must be {kinds}. Received: {received}")
    if (num_channels := getattr(model, "image_channels", RGB_CHANNELS)) != RGB_CHANNELS:
        received = f"{path}, which takes {num_channels} channels, as predict_segmentation.py reads them"
        parser.error(f"the model must take RGB pictures, as browsers send them. Received: {received}")
    return model


def build_page(model, look, blank, arguments):
    """Returns the page.

    Args:
        model: The model.
        look: A function of a picture and its name that returns a `Seen`.
        blank: A result of the model, which shows the kind of its results.
        arguments: From `parse_arguments`.
    """
    import gradio

    def take_picture(path, threshold):
        try:
            image = open_picture(path, arguments.max_megapixels * 1_000_000)
            seen = look(image, pathlib.Path(path).name)
            shown = show(seen, threshold)
        except Exception as error:
            message = str(error)
            if not isinstance(error, UnusablePictureError):  # too little memory, for instance
                traceback.print_exc()
                message = f"{pathlib.Path(path).name}: the model failed. The terminal says why"
            gradio.Warning(html.escape(message), title="No result")
            return None, None, None, None, [], message
        return None, seen, reduce_size(seen.image, {}, THUMBNAIL_SIDE)[0], *shown

    def show(seen, threshold):
        if seen is None:  # no picture yet, or one that is no longer kept
            return None, [], "Drop a picture first"
        _, rows = tabulate(seen.result, threshold, name_classes(model))
        return draw(model, seen, threshold), rows, seen.text

    lowest = getattr(model, "score_threshold", None) or 0.0  # the model itself leaves out what is below
    start = max(lowest, arguments.score_threshold)
    headers, _ = tabulate(blank, 1, name_classes(model))
    limits = f"Up to {arguments.max_megabytes} MB and {arguments.max_megapixels} million pixels"
    model_file = "/".join(arguments.model.resolve().parts[-2:])
    with gradio.Blocks(analytics_enabled=False, title=model_file, delete_cache=(600, 3600)) as page:
        gradio.Markdown(f"### {type(model).__name__}: `{model_file}`")
        if isinstance(model, SimpleBaseline) and arguments.detector is None:
            gradio.Markdown("Each picture counts as one person; `--detector` finds people in it.")
        kept = gradio.State(time_to_live=SECONDS_KEPT)
        with gradio.Row():
            with gradio.Column(scale=1, min_width=320):
                file = gradio.File(label="Picture", file_types=["image"], height=150, elem_id="file")
                message = gradio.Textbox(
                    label="Result",
                    show_label=False,
                    interactive=False,
                    placeholder=limits,
                    elem_id="message",
                )
                slider = gradio.Slider(
                    lowest,
                    1,
                    start,
                    step=0.01,
                    label="Lowest score",
                    visible="scores" in blank,
                    elem_id="slider",
                )
                thumbnail = gradio.Image(
                    show_label=False, height=200, buttons=[], visible="saliency_map" in blank
                )
                table = gradio.Dataframe(
                    headers=headers, interactive=False, max_height=500, buttons=[], elem_id="table"
                )
            with gradio.Column(scale=3):
                buttons = ["download", "fullscreen"]  # without gradio's third: it sends pictures elsewhere
                drawing = gradio.Image(
                    label="What the model sees", show_label=False, buttons=buttons, elem_id="drawing"
                )
        shown = [drawing, table, message]
        private = {"api_visibility": "private", "show_progress": "minimal"}
        # One picture at a time: a second one would slow down both, and take twice the memory.
        outputs = [file, kept, thumbnail, *shown]
        file.upload(take_picture, [file, slider], outputs, concurrency_limit=1, **private)
        slider.change(show, [kept, slider], shown, trigger_mode="always_last", **private)
    return page


class OwnSourcesOnly:
    """Sends `POLICY` with each answer of an ASGI app."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message = {**message, "headers": [*message.get("headers", ()), policy]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


def launch(page, arguments, port):
    """Serves the page until the program is interrupted."""
    warnings.filterwarnings("ignore", module=r"gradio\.")  # of its own code, which does not concern users
    import gradio
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    is_local = arguments.host in LOOPBACK
    middleware = [Middleware(OwnSourcesOnly)]
    if is_local:  # pages that try to reach this one through the browser use other names of this machine
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK)))
    elif arguments.host != "::1":
        print(f"Anybody who reaches {arguments.host} can use the page: it has no password", file=sys.stderr)
    page.queue(max_size=MOST_WAITING, api_open=False)
    page.launch(
        server_name=f"[{arguments.host}]" if ":" in arguments.host else arguments.host,
        server_port=port,
        inbrowser=arguments.open,
        max_file_size=arguments.max_megabytes * 2**20,
        state_session_capacity=MOST_VISITORS,
        theme=gradio.themes.Default(font=FONTS, font_mono=FONTS),
        footer_links=[],
        app_kwargs={"middleware": middleware},
        share=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    print(f"The page is at {page.local_url} (Ctrl+C ends it)", flush=True)
    try:
        while page.is_running:
            time.sleep(0.2)
    except KeyboardInterrupt:
        print("Closing the page ...", flush=True)
    finally:
        page.close(verbose=False)  # before its folder is deleted: a drawing in progress would make it again


if __name__ == "__main__":
    sys.exit(main())
