"""Networks: tensors to tensors. They know no probability.

A part takes the *factory* of its network, a callable `(in_shape, out_shape) -> nn.Module`, so that
swapping a part never means resizing a layer by hand. The functions exported here make factories.
"""

from pyrovae.nets.base import Net as Net
from pyrovae.nets.base import NetFactory as NetFactory
from pyrovae.nets.base import Shape as Shape
from pyrovae.nets.choices import ACTIVATIONS as ACTIVATIONS
from pyrovae.nets.choices import WEIGHT_INITS as WEIGHT_INITS
from pyrovae.nets.connecting import connect as connect
from pyrovae.nets.convolutions import conv, residual_conv
from pyrovae.nets.modes import evaluating as evaluating
from pyrovae.nets.modes import find_modules as find_modules
from pyrovae.nets.modes import in_double as in_double
from pyrovae.nets.perceptrons import MLP as MLP
from pyrovae.nets.perceptrons import gated_mlp, mlp
from pyrovae.nets.tables import deep_set, residual_mlp

__all__ = ["conv", "deep_set", "gated_mlp", "mlp", "residual_conv", "residual_mlp"]
