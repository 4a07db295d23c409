"""A function of tensors, traced once and compiled: no Python of its own is left in it.

The function is traced into a graph of tensor operations (`make_fx`), gradients and all, and
Inductor compiles the graph. What in it is decided by Python stays as it was at the example; what
would have to look at a tensor's value cannot be traced, and is refused.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.overrides import TorchFunctionMode

WORTH = 2e12  # operations that are worth compiling for: some 30 s of a core
CONTIGUOUS: dict[str, Any] = {"memory_format": torch.contiguous_format}
OPERATIONS = 1e6  # of a product, from which oneDNN's start (10 us) is worth its speed

Function = Callable[..., Sequence[Tensor | None]]


class NotCompiled(Exception):
    """Why something is left to be computed as it is written."""


class Compiled:
    """A function of tensors at one shape of its inputs, compiled; it draws from torch's generators.

    Tensors that the function holds, a network's parameters above all, are read at each call.

    Args:
        function: of tensors; it gives a sequence of tensors.
        inputs: an example of them; nothing is drawn from the generators here.

    Raises:
        NotCompiled: what cannot be traced or compiled.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self.shapes = _shapes(inputs)
        graph = _traced(function, inputs)
        self.constants = _lift(graph)
        _through_onednn(graph)
        self.function = _compiled(graph, [*inputs, *self.constants])

    def fits(self, inputs: Sequence[Tensor]) -> bool:
        """Are the inputs of the shapes that it was compiled for?"""
        return _shapes(inputs) == self.shapes

    def __call__(self, *inputs: Tensor) -> list[Tensor | None]:
        """Return what the function gives; without gradients."""
        with torch.no_grad():
            return list(self.function(*inputs, *self.constants))


class CompiledDraws:
    """A function of tensors whose calls differ in what is drawn, compiled.

    What its draws have no part in is computed once, in `start`: a product of matrices in it at
    least, as the rest is cheaper done again than kept.

    Arguments and errors: see `Compiled`.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        graph = _traced(function, inputs)
        self.constants = _lift(graph)
        _through_onednn(graph)
        self.before, after = _split(graph)
        self.function = _compiled(after, self._before(inputs))

    def start(self, *inputs: Tensor) -> None:
        """Take other inputs."""
        self.found = self._before(inputs)

    def __call__(self) -> list[Tensor | None]:
        """Return what the function gives of the inputs of `start`, and of new draws."""
        with torch.no_grad():
            return list(self.function(*self.found))

    def _before(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return list(self.before(*inputs, *self.constants))


def _shapes(inputs: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    return [(t.shape, t.dtype, t.device) for t in inputs]


def reason(error: Exception) -> str:
    """Return the first line of an error, in our words where torch's are of its own insides."""
    told = (str(error).strip().splitlines() or [repr(error)])[0]
    if "get value out of a tracing tensor" in told:
        return "Python looks at the value of a tensor, as Pyro's enumeration does"
    return told


def _traced(function: Function, inputs: Sequence[Tensor]) -> GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx

    try:
        with torch.random.fork_rng(), _Unlooking():
            graph = make_fx(lambda *t: tuple(function(*t)), decompositions())(*inputs)
    except Exception as error:  # whatever Python met in a program that is the user's own
        raise NotCompiled(f"it cannot be traced: {reason(error)}") from error
    for node in graph.graph.nodes:
        if torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ()) and _masks(node):
            raise NotCompiled(
                f"shapes depend on values ({node.target}), as those of rejection sampling do"
            )
    return graph


def _masks(node: Node) -> bool:
    """Is it another operation than indexing by whole numbers?"""
    if node.target is not torch.ops.aten.index.Tensor:
        return True
    indices = cast(Sequence[Node | None], node.args[1])
    return any(i is not None and _value(i).dtype in (torch.bool, torch.uint8) for i in indices)


class _Unlooking(TorchFunctionMode):
    """Have one_hot not look at its numbers: where they are off its range, the check sees it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.nn.functional.one_hot and len(args) == 2 and args[1] > 0:
            return (args[0].unsqueeze(-1) == torch.arange(args[1], device=args[0].device)).long()
        return func(*args, **(kwargs or {}))


def _lift(graph: GraphModule) -> list[Tensor]:
    """Make inputs of the tensors that a graph holds, parameters above all, and return them."""
    nodes = graph.graph
    last = [n for n in nodes.nodes if n.op == "placeholder"][-1]
    lifted: dict[str, Node] = {}
    tensors = []
    for node in list(nodes.nodes):
        if node.op == "get_attr":
            name = str(node.target)
            if name not in lifted:
                with nodes.inserting_after(last):
                    last = lifted[name] = nodes.placeholder(name)
                last.meta = node.meta
                tensors.append(getattr(graph, name).detach())
            node.replace_all_uses_with(lifted[name])
            nodes.erase_node(node)
    inputs = set(lifted.values())
    for node in nodes.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable and node.args and node.args[0] in inputs:
            raise NotCompiled(f"it writes to a tensor of its own ({node.target})")
    graph.recompile()
    return tensors


def _through_onednn(graph: GraphModule) -> None:
    """Let oneDNN multiply matrices of float32 on the CPU: on some, MKL has half its speed.

    x w^T + b is what oneDNN's operation computes; w^T may be a view, but of a whole matrix.
    """
    if not torch.backends.mkldnn.is_available():
        return
    aten, linear = torch.ops.aten, _linear()
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.kwargs:
            continue
        if node.target is aten.mm.default:
            bias, (a, b) = None, node.args
        elif node.target is aten.addmm.default and _value(node.args[0]).dim() == 1:
            bias, a, b = node.args
        else:
            continue
        left, right = _value(a), _value(b)
        if left.dtype != torch.float32 or left.device.type != "cpu":
            continue
        if 2 * left.numel() * right.shape[1] < OPERATIONS:
            continue
        with graph.graph.inserting_before(node):
            if not (right.is_contiguous() or right.t().is_contiguous()):  # a slice: oneDNN crawls
                b = graph.graph.call_function(aten.clone.default, (b,), CONTIGUOUS)
            weight = graph.graph.call_function(aten.t.default, (b,))
            if not left.is_contiguous():  # oneDNN would copy it: let what makes it write it so
                a = graph.graph.call_function(aten.clone.default, (a,), CONTIGUOUS)
            new = graph.graph.call_function(linear, (a, weight, bias))
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
    graph.recompile()


def _value(node: Node) -> Tensor:
    return cast(Tensor, node.meta["val"])


def _split(graph: GraphModule) -> tuple[GraphModule, GraphModule]:
    """Return a graph of what comes before all draws, and one of the rest, a function of that."""
    drawn: set[Node] = set()
    dear: set[Node] = set()
    for node in graph.graph.nodes:
        if node.op == "output" or _draws(node) or not drawn.isdisjoint(node.all_input_nodes):
            drawn.add(node)
            if _mutates(node):
                drawn.add(node.all_input_nodes[0])
        elif node.target in _products() or not dear.isdisjoint(node.all_input_nodes):
            dear.add(node)
    after: set[Node] = set()
    given: dict[Node, None] = {}  # in the order in which they were met
    waiting = [n for n in graph.graph.nodes if n in drawn]
    while waiting:
        node = waiting.pop()
        if node in after or node in given:
            continue
        if node not in drawn and (
            node.op == "placeholder" or (node in dear and node.target not in _views())
        ):
            given[node] = None
            continue
        after.add(node)
        waiting.extend(node.all_input_nodes)
    rest, new = torch.fx.Graph(), dict[Node, Node]()
    for node in given:
        new[node] = rest.placeholder(node.name)
        new[node].meta = node.meta
    for node in graph.graph.nodes:
        if node in after:
            new[node] = rest.node_copy(node, lambda n: new[n])
    (end,) = (n for n in graph.graph.nodes if n.op == "output")
    end.args = (tuple(given),)
    for node in reversed(graph.graph.nodes):
        if node in drawn and node is not end:
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph, GraphModule(graph, rest)


def _draws(node: Node) -> bool:
    seeded = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return seeded or _mutates(node)


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and bool(node.all_input_nodes)


def _multiplied(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x w^T + b; of all strides oneDNN forgets the bias's alone."""
    straight = None if bias is None else bias.contiguous()
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, straight, "none", [], "")
    return product


def _products() -> set[Any]:
    aten = torch.ops.aten
    return {
        _linear(), aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default,
        aten.convolution.default,
    }  # fmt: skip


def _views() -> set[Any]:
    """Return operations that are cheaper than to keep what they give."""
    aten = torch.ops.aten
    return {
        aten.repeat.default, aten.expand.default, aten.view.default, aten._unsafe_view.default,
        aten.t.default, aten.transpose.int, aten.permute.default, aten.unsqueeze.default,
        aten.squeeze.dim, aten.select.int, aten.slice.Tensor, aten.clone.default,
        aten.unflatten.int, aten.detach.default,
    }  # fmt: skip


LIBRARIES: list[torch.library.Library] = []  # an operation is there as long as its library is


def _linear() -> Any:
    """Return oneDNN's x w^T + b as an operation that Inductor leaves alone.

    Inductor has ideas of its own about `mkldnn._linear_pointwise`: it wants constant weights.
    """
    if not LIBRARIES:
        library = torch.library.Library("pyrovae", "DEF")
        library.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
        library.impl("linear", _multiplied, "CPU")
        library.impl("linear", lambda x, w, b: x.new_empty(len(x), len(w)), "Meta")
        LIBRARIES.append(library)
    return torch.ops.pyrovae.linear.default


def _compiled(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """Return the graph compiled by Inductor; it draws from the generators as the function does."""
    try:
        return _by_inductor(graph, inputs, None)
    except NotCompiled:  # perhaps the compiler is older than the processor and its AVX-512
        return _by_inductor(graph, inputs, 256)


def _by_inductor(graph: GraphModule, inputs: list[Tensor], bits: int | None) -> Callable[..., Any]:
    try:
        from torch._guards import TracingContext, tracing
        from torch._inductor import config
        from torch._inductor.compile_fx import compile_fx
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        # its own random numbers are others than torch's; what it warns of is its own, too; and it
        # looks into its cache on disk where there is a context of shapes
        options = {
            "fallback_random": True,
            "triton.cudagraphs": any(t.is_cuda for t in inputs),
            "cpp.vec_isa_ok": True,  # what the processor says it has: to try takes half the time
            "cpp.simdlen": bits,  # of a vector
        }
        with (
            config.patch(options), torch.no_grad(), warnings.catch_warnings(),
            tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv()))),
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            compiled = compile_fx(graph, [*inputs], ignore_shape_env=True)
            function = cast(Callable[..., Any], compiled)
            with torch.random.fork_rng():
                function(*inputs)
    except Exception as error:  # no compiler, or an operation that Inductor lacks
        raise NotCompiled(f"Inductor failed: {reason(error)}") from error
    return function


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return what operations are made of, where the usual way is slow.

    log1p takes ten times as long as log in CPU builds of torch, and it is half the time of a
    Bernoulli's density. log(1 + exp(-|l|)) loses what is below the rounding of 1: an absolute
    error of at most 2^-24, 6e-8 nats a pixel in float32, and 2^-53 in float64.
    """
    aten = torch.ops.aten

    def softplus_of_minus(magnitude: Tensor) -> Tensor:
        return (1 + (-magnitude).exp()).log()

    def with_logits(
        logits: Tensor,
        target: Tensor,
        weight: Any = None,
        pos_weight: Any = None,
        reduction: int = 1,
    ) -> Tensor:
        if weight is not None or pos_weight is not None or reduction != 0:
            return NotImplemented
        return logits.clamp(min=0) - logits * target + softplus_of_minus(logits.abs())

    return {aten.binary_cross_entropy_with_logits.default: with_logits}
