"""Handing a decrypted model to whatever runs it.

    repository     the private model repository in memory: staged, published, `current` switched
    contract       prepare -> probe -> activate -> commit | rollback
    adapters       serve, exec, systemd, none
    probe          loads a new model in a separate process before it may serve; probe_worker is that process
    vectors        acceptance vectors: inputs, expected outputs, tolerances
    engine_onnx    onnxruntime behind a small Protocol
    oip            the Open Inference Protocol v2, both directions
    serve          `edgeseal-serve`

Not here: where the model came from and whether it may run (edgeseal.trust, edgeseal.install).
"""
