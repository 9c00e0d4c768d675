"""The protocol's official client against a server, in a process of its own because it brings gevent.

Argument: host:port. Writes one line per datatype and one per refusal to standard output.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import tritonclient.http as triton  # type: ignore[import-untyped]
from tritonclient.utils import InferenceServerException  # type: ignore[import-untyped]

TYPES = {
    "BOOL": np.array([True, False, True]),
    "UINT8": np.array([0, 7, 255], np.uint8),
    "UINT16": np.array([0, 7, 2**16 - 1], np.uint16),
    "UINT32": np.array([0, 7, 2**32 - 1], np.uint32),
    "UINT64": np.array([0, 7, 2**64 - 1], np.uint64),
    "INT8": np.array([-128, 7, 127], np.int8),
    "INT16": np.array([-(2**15), 7, 2**15 - 1], np.int16),
    "INT32": np.array([-(2**31), 7, 2**31 - 1], np.int32),
    "INT64": np.array([-(2**63), 7, 2**63 - 1], np.int64),
    "FP16": np.array([0.5, -2, 65504], np.float16),
    "FP32": np.array([0.1, -2, 3e38], np.float32),
    "FP64": np.array([0.1, -2, 1e300], np.float64),
    "BYTES": np.array(["", "plain", "größe \u2264 1 " + "x" * 300], dtype=object),
}


def infer(client: Any, model: str, datatype: str, value: Any, *, send: bool, receive: bool, version: str = "") -> Any:
    given = triton.InferInput("x", list(value.shape), datatype)
    given.set_data_from_numpy(value, binary_data=send)
    wanted = [triton.InferRequestedOutput("y", binary_data=receive)]
    return client.infer(model, [given], outputs=wanted, model_version=version, request_id="r1")


def every_type(client: Any) -> None:
    for datatype, value in TYPES.items():
        model = f"echo-{datatype.lower()}"
        assert client.is_model_ready(model)
        metadata = client.get_model_metadata(model)
        assert metadata["inputs"] == [{"name": "x", "datatype": datatype, "shape": [-1]}], metadata
        for send in (True, False):
            if datatype == "FP16" and not send:
                continue  # the client itself refuses FP16 in JSON
            for receive in (True, False):
                result = infer(client, model, datatype, value, send=send, receive=receive)
                got = result.as_numpy("y")
                if datatype == "BYTES":
                    got = np.array([v if isinstance(v, str) else v.decode() for v in got], dtype=object)
                assert np.array_equal(got, value), (datatype, send, receive, got)
                assert result.get_response()["model_version"] == "1"
                assert result.get_response()["id"] == "r1"
        print(datatype, "ok")  # noqa: T201 - what the test reads


def errors(client: Any) -> None:
    """Print what the client makes of each refusal: status and message."""
    fp32, zeros = "FP32", np.zeros(3, np.float32)
    region = triton.InferInput("x", [3], fp32)
    region.set_shared_memory("region", 12)
    classes = [triton.InferRequestedOutput("y", class_count=2)]
    given = triton.InferInput("x", [3], fp32).set_data_from_numpy(zeros)
    for ask in (
        lambda: infer(client, "echo-fp32", "INT32", np.zeros(3, np.int32), send=True, receive=True),
        lambda: infer(client, "echo-fp32", fp32, np.zeros((3, 1), np.float32), send=True, receive=True),
        lambda: infer(client, "absent", fp32, zeros, send=True, receive=True),
        lambda: infer(client, "echo-fp32", fp32, zeros, send=True, receive=True, version="9"),
        lambda: infer(client, "echo-fp32", fp32, np.full(3, np.nan, np.float32), send=True, receive=False),
        lambda: infer(client, "echo-fp32", fp32, np.zeros(2**19, np.float32), send=True, receive=True),
        lambda: client.infer("echo-fp32", [region]),
        lambda: client.infer("echo-fp32", [given], outputs=classes),
        lambda: client.infer("echo-fp32", [given], sequence_id=7, sequence_start=True),
        lambda: client.infer("echo-fp32", [given], request_compression_algorithm="gzip"),
        lambda: client.infer("echo-fp32", []),
        lambda: client.infer("echo-fp32", [given, given]),
        lambda: client.load_model("absent"),
        lambda: client.load_model("echo-fp32", config="{}"),
        lambda: client.unload_model("echo-fp32"),
        lambda: client.get_model_config("echo-fp32"),
        lambda: client.get_inference_statistics("echo-fp32"),
    ):
        try:
            ask()  # type: ignore[no-untyped-call]
        except InferenceServerException as e:
            print(e.status(), e.message())  # noqa: T201 - what the test reads
        else:
            raise AssertionError(ask)


def repository(client: Any) -> None:
    """The model repository extension, as far as a client may use it."""
    index = client.get_model_repository_index()
    assert {"name": "echo-fp32", "version": "1", "state": "READY"} in index, index
    client.load_model("echo-fp32")
    assert client.is_model_ready("echo-fp32", "1")
    assert not client.is_model_ready("echo-fp32", "2")
    assert not client.is_model_ready("absent")


def together(client: Any) -> None:
    """Answers come to those who asked, whatever else is asked at the same time; compression of answers is a wish."""
    values = [np.full(3, number, np.float32) for number in range(40)]
    tensors = [triton.InferInput("x", [3], "FP32").set_data_from_numpy(value) for value in values]
    waiting = [client.async_infer("echo-fp32", [t], response_compression_algorithm="gzip") for t in tensors]
    for value, request in zip(values, waiting, strict=True):
        assert np.array_equal(request.get_result().as_numpy("y"), value)


def main() -> None:
    client = triton.InferenceServerClient(sys.argv[1], concurrency=4)
    assert client.is_server_live()
    assert client.is_server_ready()
    about = client.get_server_metadata()
    assert about["name"] == "edgeseal-serve"
    assert about["extensions"] == ["binary_tensor_data", "model_repository"]
    infer(client, "echo-fp32", "FP32", TYPES["FP32"], send=True, receive=True, version="1")
    every_type(client)
    repository(client)
    together(client)
    errors(client)
    client.close()


if __name__ == "__main__":
    main()
