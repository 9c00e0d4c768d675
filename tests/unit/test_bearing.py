"""The example model: its signals have the physics they claim, and its training is a function of its seed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("onnx", reason="training writes ONNX files: pip install --group demo")

from examples.bearing import network as networks
from examples.bearing import train
from examples.bearing.ask import predict
from examples.bearing.signals import (
    BEARING_6205,
    CLASSES,
    FIRST_PLANT,
    SAMPLE_RATE,
    SAMPLES,
    Conditions,
    load_zone,
    vibration,
)
from examples.bearing.spectra import FEATURES, ORDERS, envelope, features, order_spectrum

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit
EXAMPLES = Path(__file__).parents[2] / "examples"
CLEAR = Conditions(speed_hz=25.0, load=0.8, severity=3.0, noise=0.1, resonance_hz=3_500.0, damping=0.04)
FAULTS = ("inner race", "outer race", "ball")


def _mean_order_spectrum(fault: str, conditions: Conditions = CLEAR) -> np.ndarray:
    each = [
        order_spectrum(vibration(fault, conditions, np.random.default_rng([5, i])), conditions.speed_hz)
        for i in range(24)
    ]
    mean: np.ndarray = np.mean(each, axis=0)
    return mean


def _at(spectrum: np.ndarray, order: float) -> float:
    return float(spectrum[np.abs(ORDERS - order) < 0.08].max())


def test_rates_of_a_6205_are_the_catalogue_s() -> None:
    # The values any bearing catalogue and the well-known test-bench data sets give for this bearing.
    assert BEARING_6205.outer_race == pytest.approx(3.585, abs=2e-3)
    assert BEARING_6205.inner_race == pytest.approx(5.415, abs=2e-3)
    assert BEARING_6205.cage == pytest.approx(0.398, abs=1e-3)
    assert BEARING_6205.ball == pytest.approx(2 * 2.357, abs=4e-3)


def test_contact_angle_shifts_the_rates_towards_each_other() -> None:
    tilted = dataclasses.replace(BEARING_6205, contact_degrees=40.0)
    assert tilted.inner_race < BEARING_6205.inner_race
    assert tilted.outer_race > BEARING_6205.outer_race
    assert tilted.inner_race + tilted.outer_race == pytest.approx(tilted.balls)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("speed", [16.0, 29.0])
def test_each_fault_has_its_line_at_its_rate_at_any_speed(fault: str, speed: float) -> None:
    conditions = dataclasses.replace(CLEAR, speed_hz=speed)
    spectrum, quiet = _mean_order_spectrum(fault, conditions), _mean_order_spectrum("healthy", conditions)
    rate = BEARING_6205.strikes(fault)
    assert _at(spectrum, rate) > 4 * np.median(spectrum)
    assert _at(spectrum, rate) > 2 * _at(quiet, rate)


def test_a_healthy_bearing_has_no_line_at_any_fault_s_rate() -> None:
    quiet = _mean_order_spectrum("healthy")
    assert all(_at(quiet, BEARING_6205.strikes(fault)) < 2 * np.median(quiet) for fault in FAULTS)


def test_an_inner_race_carries_the_load_zone_as_sidebands_one_turn_apart_and_an_outer_race_does_not() -> None:
    inner, outer = _mean_order_spectrum("inner race"), _mean_order_spectrum("outer race")
    for side in (-1, 1):
        assert _at(inner, BEARING_6205.inner_race + side) > 4 * np.median(inner)
        assert _at(outer, BEARING_6205.outer_race + side) < 0.3 * _at(outer, BEARING_6205.outer_race)


def test_a_ball_s_strikes_swell_with_the_cage() -> None:
    ball = _mean_order_spectrum("ball")
    assert _at(ball, BEARING_6205.cage) > 4 * np.median(ball)


def test_ringing_is_at_the_resonance() -> None:
    signal = vibration("outer race", CLEAR, np.random.default_rng(1))
    power = np.abs(np.fft.rfft(signal))
    frequencies = np.fft.rfftfreq(SAMPLES, 1 / SAMPLE_RATE)
    high = frequencies > 1_000
    assert frequencies[high][power[high].argmax()] == pytest.approx(CLEAR.resonance_hz, rel=0.05)


def test_a_loaded_bearing_is_loaded_round_more_of_its_circumference() -> None:
    angle = np.linspace(-np.pi, np.pi, 1_001)
    idle, full = load_zone(angle, 0.0), load_zone(angle, 1.0)
    assert (idle > 0).sum() < (full > 0).sum() < len(angle)
    assert idle.max() == pytest.approx(1)
    assert (idle >= 0).all()


def test_envelope_of_a_modulated_tone_is_its_modulation() -> None:
    time = np.arange(SAMPLES) / SAMPLE_RATE
    modulation = 1 + 0.5 * np.sin(2 * np.pi * 40 * time)
    found = envelope(modulation * np.sin(2 * np.pi * 3_000 * time))
    assert np.abs(found - modulation)[500:-500].max() < 0.02


def test_features_are_finite_and_of_the_declared_length_even_for_silence() -> None:
    loud = features(vibration("ball", CLEAR, np.random.default_rng(2)), CLEAR.speed_hz)
    assert loud.shape == (FEATURES,)
    assert loud.dtype == np.float32
    assert np.isfinite(loud).all()


def test_training_and_held_out_signals_never_meet() -> None:
    one, _ = train.dataset(FIRST_PLANT, 8, stream=train.TRAINING)
    other, _ = train.dataset(FIRST_PLANT, 8, stream=train.HELD_OUT)
    assert not any(np.array_equal(a, b) for a in one for b in other)


@pytest.fixture(scope="module")
def small() -> tuple[networks.Network, np.ndarray, np.ndarray]:
    samples, labels = train.dataset(FIRST_PLANT, 240, stream=train.TRAINING)
    return _trained(samples, labels), samples, labels


def _trained(samples: np.ndarray, labels: np.ndarray) -> networks.Network:
    rng = np.random.default_rng(3)
    network = networks.Network.new((FEATURES, 64, 64, len(CLASSES)), samples, rng)
    networks.Training(network, rng, rate=1e-3).run(samples, labels, epochs=12, progress=lambda _n: None)
    return network


def test_a_tiny_run_learns(small: tuple[networks.Network, np.ndarray, np.ndarray]) -> None:
    held_out = train.dataset(FIRST_PLANT, 120, stream=train.HELD_OUT)
    assert train.accuracy(small[0], *held_out) > 0.7  # 0.25 by guessing


def test_shuffled_labels_teach_nothing(small: tuple[networks.Network, np.ndarray, np.ndarray]) -> None:
    # Negative control: what the test above measures comes from the signals, not from a leak.
    _, samples, labels = small
    held_out = train.dataset(FIRST_PLANT, 120, stream=train.HELD_OUT)
    assert train.accuracy(_trained(samples, np.random.default_rng(4).permutation(labels)), *held_out) < 0.5


def test_training_gives_the_same_bytes_each_time(
    small: tuple[networks.Network, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    network, samples, labels = small
    networks.save(network, tmp_path / "a.onnx", classes=CLASSES)
    networks.save(_trained(samples, labels), tmp_path / "b.onnx", classes=CLASSES)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_fitting_the_head_leaves_every_other_layer_to_the_last_bit(
    small: tuple[networks.Network, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    before, samples, labels = small
    networks.save(before, tmp_path / "a.onnx", classes=CLASSES)
    after = networks.load(tmp_path / "a.onnx")
    train.fit_head(after, samples, labels, epochs=1, progress=lambda _n: None)
    for layer in range(networks.HEAD):
        assert np.array_equal(before.weights[layer], after.weights[layer])
        assert np.array_equal(before.biases[layer], after.biases[layer])
    assert not np.array_equal(before.weights[networks.HEAD], after.weights[networks.HEAD])


def test_the_exported_file_predicts_what_the_network_predicts(
    small: tuple[networks.Network, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    network, samples, _ = small
    networks.save(network, tmp_path / "model.onnx", classes=CLASSES)
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run([networks.OUTPUT], {networks.INPUT: samples[:16]})
    assert np.abs(found - network.layers(samples[:16])[-1]).max() < 1e-4
    assert session.get_modelmeta().custom_metadata_map["classes"].split(",") == list(CLASSES)


def test_the_command_as_a_person_types_it_makes_at_least_eight_megabytes(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bearing.train", "--out", str(tmp_path / "m.onnx")]
    small = ["--signals", "40", "--held-out", "20", "--epochs", "1"]
    done = subprocess.run([*words, *small], cwd=EXAMPLES, capture_output=True, text=True, check=True)
    assert "accuracy on 20 held-out signals" in done.stdout
    assert (tmp_path / "m.onnx").stat().st_size >= 8_000_000


class _Oip(BaseHTTPRequestHandler):
    """Far end of `ask`: answers as a server of the protocol does, always the first class."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        rows = asked["inputs"][0]["shape"][0]
        if self.path == "/v2/models/bearing/infer":
            output = {"name": networks.OUTPUT, "datatype": "FP32", "shape": [rows, 4], "data": [1.0, 0, 0, 0] * rows}
            self._send(200, {"model_name": "bearing", "model_version": "7", "outputs": [output]})
        else:
            self._send(404, {"error": "there is no such model"})

    def _send(self, status: int, answer: dict[str, object]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its signature
        """Stay silent."""


@pytest.fixture
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Oip)
    thread = Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_asking_returns_release_and_rows(server: str) -> None:
    release, rows = predict(server, "bearing", np.zeros((3, FEATURES), np.float32))
    assert release == "7"
    assert rows.argmax(axis=1).tolist() == [0, 0, 0]


def test_asking_for_an_unknown_model_says_what_the_server_said(server: str) -> None:
    with pytest.raises(SystemExit, match=r"404: .*no such model"):
        predict(server, "gearbox", np.zeros((1, FEATURES), np.float32))


def test_asking_where_nothing_answers_says_so() -> None:
    with pytest.raises(SystemExit, match="nothing answers at"):
        predict("http://127.0.0.1:9", "bearing", np.zeros((1, FEATURES), np.float32))


def test_asking_as_a_person_types_it_prints_predictions_beside_the_truth(server: str) -> None:
    words = [sys.executable, "-m", "bearing.ask", server, "--count", "8"]
    done = subprocess.run(words, cwd=EXAMPLES, capture_output=True, text=True, check=True)
    assert "2 of 8 right, answered by release 7 of bearing" in done.stdout  # one in four is healthy
