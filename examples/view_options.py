"""Options that say how a model looks at pictures, and which of their channels are shown.

Scripts parse them before they load Keras, so that neither it nor heads is imported here.
"""

from options import number, whole_number

OVERLAP = 0.2  # of slices
# The options of `add_detector_views` and `add_views`.
VIEWS = ("slices", "overlap", "tiles", "crop_size", "stride", "scales", "flip_test")


def add_detector_views(parser):
    """Adds the options of a detector's views: in slices, or also mirrored and at other scales."""
    add = parser.add_argument
    slices = "look at overlapping squares of this side, and at the whole picture; default: only at the latter"
    add("--slices", type=whole_number(1), metavar="SIDE", help=slices)
    overlap = f"share of a slice's side that overlaps the next one; default: {OVERLAP}"
    add("--overlap", type=number(at_least=0), metavar="SHARE", help=overlap)
    scales = "look at the picture at several scales; default: 1"
    add("--scales", type=number(above=0), nargs="+", metavar="FACTOR", help=scales)
    add("--flip-test", action="store_true", help="also look at the mirrored picture, in twice the time")


def check_detector_views(parser, arguments):
    """Ends the program if the options of `add_detector_views` contradict each other; sets --overlap."""
    if arguments.overlap is not None and not arguments.slices:
        parser.error("--overlap needs --slices")
    if arguments.overlap is not None and arguments.overlap >= 1:
        parser.error(f"--overlap must be below 1. Received: {arguments.overlap}")
    if arguments.slices and (arguments.scales or arguments.flip_test):
        parser.error("--slices cannot be combined with --scales or --flip-test")
    if arguments.slices and arguments.overlap is None:
        arguments.overlap = OVERLAP


def add_views(parser):
    """Adds the options of a segmenter's views: by windows or tiles, or also mirrored and at other scales."""
    add, side = parser.add_argument, whole_number(1)
    crop = "slide a window of this size; default: whole pictures"
    add("--crop-size", type=side, nargs=2, metavar=("HEIGHT", "WIDTH"), help=crop)
    stride = "stride of the sliding window; default: two thirds of --crop-size"
    add("--stride", type=side, nargs=2, metavar=("HEIGHT", "WIDTH"), help=stride)
    tiles = "segment overlapping squares of this side, in little memory; default: whole pictures"
    add("--tiles", type=side, metavar="SIDE", help=tiles)
    scales = "average over the picture at several scales; default: 1"
    add("--scales", type=number(above=0), nargs="+", metavar="FACTOR", help=scales)
    add("--flip-test", action="store_true", help="average with the mirrored picture, in twice the time")


def check_views(parser, arguments):
    """Ends the program if the options of `add_views` contradict each other."""
    crop, stride = arguments.crop_size, arguments.stride
    if stride and not crop:
        parser.error("--stride needs --crop-size")
    if stride and (stride[0] > crop[0] or stride[1] > crop[1]):
        sides = f"--stride {stride[0]} {stride[1]}, --crop-size {crop[0]} {crop[1]}"
        parser.error(f"--stride must not be above --crop-size, or pixels are missed. Received: {sides}")
    if arguments.tiles and crop:
        parser.error("--tiles and --crop-size are two ways to cut a picture: pass one of them")
    if arguments.tiles and arguments.scales:
        parser.error("--tiles takes no --scales: the tiles of large pictures are not resized")


def list_views(arguments) -> dict:
    """Returns how a model looked at pictures: the options of `VIEWS` that were given."""
    given = {name: getattr(arguments, name, None) for name in VIEWS}
    return {name: value for name, value in given.items() if value}


def add_bands(parser):
    """Adds which channels of a multispectral picture are shown."""
    bands = "channels of a multispectral picture shown as red, green, blue, from 0; default: the first three"
    parser.add_argument("--bands", type=whole_number(0), nargs=3, metavar=("R", "G", "B"), help=bands)
