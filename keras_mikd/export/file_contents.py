"""What a `.tflite` file asks of the device that runs it."""

from tensorflow.lite.python import schema_py_generated as schema

# These stand between floats and integers; a file in int8 begins and ends with them.
_BETWEEN = ("QUANTIZE", "DEQUANTIZE")
_OPERATORS = {
    number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()
}


def minimum_runtime(content):
    """Returns the version of the oldest runtime with all operators of a file, or `None`."""
    model = schema.Model.GetRootAs(content)
    for entry in map(model.Metadata, range(model.MetadataLength())):
        if entry.Name() == b"min_runtime_version":
            text = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes().rstrip(b"\0").decode()
            return text or None
    return None


def float_operators(content):
    """Returns the kinds of operators that put out float32, sorted, of a file in integers."""
    model = schema.Model.GetRootAs(content)
    found = set()
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for operator in map(graph.Operators, range(graph.OperatorsLength())):
            code = model.OperatorCodes(operator.OpcodeIndex())
            name = _OPERATORS[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            outputs = map(operator.Outputs, range(operator.OutputsLength()))
            if any(graph.Tensors(output).Type() == schema.TensorType.FLOAT32 for output in outputs):
                found.add(name)
    return tuple(sorted(found.difference(_BETWEEN)))
