"""A graph of PyTorch operations as a program of PyTorch's interpreter, which runs without Python."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

JIT: Any = torch._C
FORMATS = (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64)
NUMBERS: dict[Any, int] = {  # by which the interpreter knows them
    **{kind: number for number, kind in enumerate(FORMATS)},
    **{kind: number for number, kind in enumerate(TYPES)},
    torch.bool: 11,
    torch.bfloat16: 15,
    torch.strided: 0,
}


def program(graph: fx.Graph) -> Callable[..., tuple[Tensor, ...]]:
    """Return a function from the graph's inputs to its outputs, a list of tensors.

    Args:
        graph: inputs, calls of operators (`torch.ops.…`) and an output, as `make_fx` leaves it.

    Raises:
        TypeError: it holds something else.
    """
    made, known = JIT.Graph(), {}
    for node in graph.nodes:
        if node.op == "placeholder":
            known[node] = made.addInput(node.name)
            known[node].setType(JIT.TensorType.get())
        elif node.op == "output":
            results = [known[result] for result in node.args[0]]
            together = made.create("prim::TupleConstruct", results, 1)
            together.output().setType(JIT.TupleType([result.type() for result in results]))
            made.insertNode(together)
            made.registerOutput(together.output())
        elif node.target is operator.getitem:
            known[node] = _item(made, known[node.args[0]], node.args[1])
        elif isinstance(node.target, torch._ops.OpOverload):
            known[node] = _call(made, node, known)
        else:
            raise TypeError(f"{node.op} of {node.target} is no operator of PyTorch")
    made.lint()
    play = JIT._create_function_from_graph("step", made)

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        before = JIT._get_graph_executor_optimize()
        JIT._set_graph_executor_optimize(False)  # it would join matrix products, which changes roundings
        try:
            return play(*given)
        finally:
            JIT._set_graph_executor_optimize(before)

    return run


def _call(made: Any, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    """Add the call of an operator; return its output, or a list of several."""
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema
    inputs = []
    for index, argument in enumerate(schema.arguments):
        given = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        inputs.append(_value(made, given, argument.type, known))
    call = made.create(schema.name, inputs, len(schema.returns))
    outputs = list(call.outputs())
    for output, returned in zip(outputs, schema.returns, strict=True):
        output.setType(returned.type)
    made.insertNode(call)
    return outputs[0] if len(outputs) == 1 else outputs


def _value(made: Any, given: Any, kind: Any, known: dict[fx.Node, Any]) -> Any:
    """Return what stands for an argument: a node's output, or a constant of the type that the operator wants."""
    if isinstance(given, fx.Node):
        return known[given]
    if given is None:
        return made.insertConstant(None)
    if isinstance(kind, JIT.OptionalType):
        kind = kind.getElementType()
    if isinstance(kind, JIT.ListType):
        inner = kind.getElementType()
        items = given if isinstance(given, (list, tuple)) else [given]
        built = made.create("prim::ListConstruct", [_value(made, item, inner, known) for item in items], 1)
        built.output().setType(kind)
        made.insertNode(built)
        return built.output()
    if isinstance(given, (torch.memory_format, torch.dtype, torch.layout)):
        given = NUMBERS[given]
    return made.insertConstant(float(given) if isinstance(kind, JIT.FloatType) else given)


def _item(made: Any, whole: Any, index: int) -> Any:
    if isinstance(whole, list):
        return whole[index]
    call = made.create("aten::__getitem__", [whole, made.insertConstant(index)], 1)
    call.output().setType(JIT.TensorType.get())
    made.insertNode(call)
    return call.output()
