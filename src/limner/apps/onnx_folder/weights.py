"""How the weights lie in a graph: in a smaller type, from which float32 is made when it is opened.

Networks are computed in float32 whatever the weights are stored in, for norms overflow in float16.
The operations that make float32 have only constants as inputs, so that onnxruntime does them once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from limner.apps.web_page.weights import GROUP, PRECISIONS, Precision, in_groups

__all__ = ["PRECISIONS", "Precision", "stored_in"]

MATRICES = {"MatMul": (0, 1), "Gemm": (0, 1), "Gather": (0,)}
CONVOLUTIONS = {"Conv": (1,), "ConvTranspose": (1,)}
"""Operations with weights, and which of their inputs may be one."""


def stored_in(precision: Precision, model: Any) -> Any:
    """The same model of the package onnx with its matrices in this precision.

    int8: the numbers of matrices, each 32 with a scale, as in a web page; convolutions in float16.
    """
    from onnx import helper, numpy_helper

    if precision == "float32":
        return model
    graph = model.graph
    large = _inputs_of(graph, MATRICES)
    wanted = large | _inputs_of(graph, CONVOLUTIONS)
    kept, added, before = [], [], []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.name not in wanted or values.dtype != np.float32 or values.ndim < 2:
            kept.append(tensor)
            continue
        name = tensor.name
        if precision == "int8" and name in large and values.size % GROUP == 0:
            whole, scales = in_groups(values)
            parts = {
                "int8": whole.reshape(-1, GROUP),
                "scales": scales[:, None],
                "shape": np.array(values.shape, np.int64),
            }
            added += [numpy_helper.from_array(part, f"{name}.{key}") for key, part in parts.items()]
            before += [
                *(
                    helper.make_node("Cast", [f"{name}.{key}"], [f"{name}.{key}.float"], to=1)
                    for key in ("int8", "scales")
                ),
                helper.make_node(
                    "Mul", [f"{name}.int8.float", f"{name}.scales.float"], [f"{name}.groups"]
                ),
                helper.make_node("Reshape", [f"{name}.groups", f"{name}.shape"], [name]),
            ]
        else:
            added.append(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
            before.append(helper.make_node("Cast", [f"{name}.half"], [name], to=1))
    nodes = [*before, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend([*kept, *added])
    graph.node.extend(nodes)
    return model


def _inputs_of(graph: Any, operations: Mapping[str, tuple[int, ...]]) -> set[str]:
    return {
        node.input[place]
        for node in graph.node
        for place in operations.get(node.op_type, ())
        if place < len(node.input)
    }
