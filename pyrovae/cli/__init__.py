"""The command line. It holds no logic that the library lacks."""

import pyrovae.cli.training  # noqa: F401  its commands join the app
import pyrovae.cli.using  # noqa: F401
from pyrovae.cli.shared import app, main

__all__ = ["app", "main"]
