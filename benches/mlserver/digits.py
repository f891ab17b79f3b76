"""The demo's model in MLServer, as its documentation shows a runtime of one's own: JSON to an array, the model, arrays to JSON."""

import os
import sys

sys.setdlopenflags(os.RTLD_LAZY)  # see benches/models/make.py: not all that torch is linked to is there
import torch  # noqa: E402
from mlserver import MLModel  # noqa: E402
from mlserver.codecs import NumpyCodec  # noqa: E402
from mlserver.types import InferenceRequest, InferenceResponse  # noqa: E402


class Digits(MLModel):
    async def load(self) -> bool:
        torch.set_num_threads(1)
        self.module = torch.jit.freeze(torch.jit.load(self.settings.parameters.uri).eval())
        return True

    async def predict(self, request: InferenceRequest) -> InferenceResponse:
        pixels = torch.from_numpy(NumpyCodec.decode_input(request.inputs[0]))
        with torch.inference_mode():
            outputs = self.module(pixels)
        names = ("digit", "probabilities")
        encoded = [NumpyCodec.encode_output(name, tensor.numpy()) for name, tensor in zip(names, outputs)]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=encoded)
