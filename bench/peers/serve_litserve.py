"""The same network behind LitServe, with its dynamic batches: for `serving.py`, in an environment of its own.

    python serve_litserve.py NETWORK.onnx PORT SIZE MAX_BATCH WAIT_SECONDS THREADS

NETWORK takes uint8 pixels [B, SIZE, SIZE, 3]. A request is JSON with the pixels in base64: LitServe 0.2.19 hands
requests to another process as forms or JSON, not as bytes, and an uploaded file cannot go there: it is not picklable.
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve
import numpy as np

NETWORK, PORT, SIZE, MAX_BATCH, WAIT, THREADS = sys.argv[1:]


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(THREADS)
        self.session = onnxruntime.InferenceSession(NETWORK, options, providers=["CPUExecutionProvider"])

    def decode_request(self, request: dict[str, str]) -> Any:
        content = base64.b64decode(request["content"])
        return np.frombuffer(content, np.uint8).reshape(int(SIZE), int(SIZE), 3)

    def batch(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, x: Any) -> Any:
        return self.session.run(["logits"], {"pixels": x})[0]

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any) -> Any:
        return {"logits": output.tolist()}


if __name__ == "__main__":
    api = Classifier(max_batch_size=int(MAX_BATCH), batch_timeout=float(WAIT), api_path="/predict")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(
        host="127.0.0.1", port=int(PORT), num_api_servers=1, generate_client_file=False, log_level="error"
    )
