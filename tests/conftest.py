"""No test reaches for the network: what the hub's client would download is an error at once."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
