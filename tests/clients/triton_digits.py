"""The demo's linear model as one of Triton's python backend; test_triton_behind.py puts it into a repository. What a request says
beside its tensors, it says again as bytes of JSON to who asks with a header `x-tell`.

Never: uses anything of Penstock.
"""

import json
import zipfile

import numpy
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        file = json.loads(args["model_config"])["parameters"]["file"]["string_value"]
        with zipfile.ZipFile(file) as archive:
            weight, bias = (numpy.frombuffer(archive.read(f"model/data/{at}"), numpy.float32) for at in range(2))
        self.weight, self.bias = weight.reshape(10, 64).T, bias

    def execute(self, requests):
        return [triton.InferenceResponse(self.outputs(request)) for request in requests]

    def outputs(self, request):
        # By DLPack, both ways: this Triton was built for numpy 1, and takes arrays of numpy 2 for empty.
        pixels = numpy.from_dlpack(triton.get_input_tensor_by_name(request, "pixels"))
        exponentials = numpy.exp(pixels / 16 @ self.weight + self.bias)
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        outputs = {"digit": probabilities.argmax(axis=1), "probabilities": probabilities}
        if "x-tell" in request.parameters():
            outputs["told"] = numpy.frombuffer(request.parameters().encode(), numpy.uint8).copy()
        return [triton.Tensor.from_dlpack(name, values) for name, values in outputs.items()]
