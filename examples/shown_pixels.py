"""How pictures of any number of channels are shown."""

from heads.drawing import draw_bands
from heads.pictures import RGB_CHANNELS


def show_pixels(image, bands=None):
    """Returns a picture in colours, (height, width, 3): RGB as it is, of others three bands.

    Args:
        image: (height, width, channels).
        bands: --bands.
    """
    return image if image.shape[-1] == RGB_CHANNELS else draw_bands(image, bands)


def check_bands(bands, num_channels: int):
    """Raises a ValueError if --bands does not fit pictures of so many channels."""
    if bands is None:
        return
    if num_channels == RGB_CHANNELS:
        received = f"--bands {_join(bands)}"
        raise ValueError(f"--bands is for pictures of other than 3 channels. Received: {received}")
    if max(bands) >= num_channels:
        raise ValueError(
            f"--bands must be three of 0 .. {num_channels - 1}, the channels of the pictures. "
            f"Received: --bands {_join(bands)}"
        )


def describe_channels(num_channels: int, bands=None) -> str:
    """Returns in a line how pictures of other than 3 channels are shown; nothing of RGB."""
    if num_channels == RGB_CHANNELS:
        return ""
    shown = bands or [min(place, num_channels - 1) for place in range(RGB_CHANNELS)]
    return f"{num_channels} channels, of which {_join(shown)} are shown as red, green and blue (--bands)"


def tell_channels(parser, num_channels: int, bands=None):
    """Prints how pictures of other than 3 channels are shown; ends the program if --bands does not fit."""
    try:
        check_bands(bands, num_channels)
    except ValueError as error:
        parser.error(str(error))
    if channels := describe_channels(num_channels, bands):
        print(f"Pictures of {channels}", flush=True)


def _join(bands):
    return " ".join(map(str, bands))
