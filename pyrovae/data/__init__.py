"""Named data sets, tables and arrays on disk; binarising, dequantising and standardising."""

from pyrovae.data.dataset import SPLITS as SPLITS
from pyrovae.data.dataset import Data
from pyrovae.data.dataset import digest as digest
from pyrovae.data.dataset import original as original
from pyrovae.data.files import FILES as FILES
from pyrovae.data.loading import BINARIZE as BINARIZE
from pyrovae.data.loading import STATIC_SEED as STATIC_SEED
from pyrovae.data.loading import load
from pyrovae.data.named import NAMES as NAMES
from pyrovae.data.named import TORCHVISION as TORCHVISION
from pyrovae.data.streams import Stream as Stream
from pyrovae.data.streams import sample as sample
from pyrovae.data.streams import stream
from pyrovae.data.transforms import binarize, dequantize, rescale, standardize

__all__ = ["Data", "binarize", "dequantize", "load", "rescale", "standardize", "stream"]
