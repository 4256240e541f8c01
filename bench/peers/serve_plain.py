"""The same network behind a plain FastAPI handler without batches: for `serving.py`.

    python serve_plain.py NETWORK.onnx PORT SIZE THREADS [pool]

NETWORK takes uint8 pixels [B, SIZE, SIZE, 3]; a request is raw pixels. With `pool` the network runs in FastAPI's pool
of threads, else in the handler.
"""

from __future__ import annotations

import sys
from typing import Any

import fastapi
import numpy as np
import onnxruntime
import uvicorn
from fastapi.concurrency import run_in_threadpool

NETWORK, PORT, SIZE, THREADS = sys.argv[1:5]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(THREADS)
session = onnxruntime.InferenceSession(NETWORK, options, providers=["CPUExecutionProvider"])
app = fastapi.FastAPI()


def answer(content: bytes) -> dict[str, Any]:
    pixels = np.frombuffer(content, np.uint8).reshape(1, int(SIZE), int(SIZE), 3)
    return {"logits": session.run(["logits"], {"pixels": pixels})[0][0].tolist()}


@app.post("/predict")
async def predict(request: fastapi.Request) -> dict[str, Any]:
    content = await request.body()
    return await run_in_threadpool(answer, content) if "pool" in sys.argv else answer(content)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(PORT), log_level="error")
