"""Handing a decrypted model to whatever runs it.

    repository     the private model repository in memory: staged, published, `current` switched
    contract       prepare -> probe -> activate -> commit | rollback
    adapters       serve, exec, systemd, none
    probe          loads a new model in a separate process before it may serve; probe_worker is that process
    child          runs another program in bounded time, with bounded output
    vectors        acceptance vectors: inputs, expected outputs, tolerances
    engine         a small Protocol for what runs a model; engine_onnx is onnxruntime, onnx_external its files,
                   engine_litert is LiteRT, tflite_file its files; engine_settings what a release asks of them
    oip            the Open Inference Protocol v2, both directions; answer puts a model between them
    models         what is served: follows `current`
    serve          `edgeseal-serve`; listen is where, supervisor and worker its processes, app the worker's routes,
                   connection what one client may hold, counters what /metrics says
    page           for the person at the device: page_routes, page_plot, page_words, page_style

Not here: where the model came from and whether it may run (edgeseal.trust, edgeseal.install).
"""
