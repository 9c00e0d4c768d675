"""Ask a served bearing model about signals it has never seen, and print its answers beside the truth.

    python -m bearing.ask http://127.0.0.1:8000 --count 8

Speaks the Open Inference Protocol v2 over HTTP, as any client of any such server does; nothing here knows of edgeseal.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import urllib3

from .network import INPUT, OUTPUT
from .signals import CLASSES, FIRST_PLANT, SECOND_PLANT
from .spectra import features
from .train import HELD_OUT, signals

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .network import Floats

PLANTS: Final = {"first": FIRST_PLANT, "second": SECOND_PLANT}
TIMEOUT: Final = 30.0


def predict(url: str, model: str, samples: Floats) -> tuple[str, NDArray[np.float64]]:
    """Send `samples` in one request; return the release that answered and a row of probabilities for each."""
    tensor = {"name": INPUT, "shape": list(samples.shape), "datatype": "FP32", "data": samples.ravel().tolist()}
    answer = _answer(f"{url.rstrip('/')}/v2/models/{model}/infer", {"inputs": [tensor], "outputs": [{"name": OUTPUT}]})
    output = answer["outputs"][0]
    return str(answer.get("model_version", "?")), np.array(output["data"]).reshape(output["shape"])


def _answer(url: str, body: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
    try:
        response = urllib3.request("POST", url, json=body, timeout=TIMEOUT, retries=False)
    except urllib3.exceptions.HTTPError as e:
        raise SystemExit(f"nothing answers at {url}: {type(e).__name__}; is edgeseal-serve running there?") from None
    if response.status != 200:  # noqa: PLR2004 - HTTP
        raise SystemExit(f"{url} answered {response.status}: {response.data[:500].decode(errors='replace')}")
    return response.json()


def main() -> None:
    """Ask, print a line for each signal, and how many were right."""
    wanted = _arguments()
    drawn = list(signals(PLANTS[wanted.plant], wanted.count, stream=HELD_OUT))
    samples = np.stack([features(signal, conditions.speed_hz) for _, conditions, signal in drawn])
    release, probabilities = predict(wanted.url, wanted.model, samples)
    right = 0
    print("shaft   load  noise  truth       prediction  sure")
    for (label, c, _), row in zip(drawn, probabilities, strict=True):
        guess = int(row.argmax())
        right += guess == label
        mark = "" if guess == label else "   wrong"
        print(
            f"{c.speed_hz * 60:4.0f}/min {c.load:4.0%}  {c.noise:5.2f}  {CLASSES[label]:<11} {CLASSES[guess]:<11} "
            f"{row[guess]:4.0%}{mark}"
        )
    print(f"{right} of {len(drawn)} right, answered by release {release} of {wanted.model}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bearing.ask", description="Ask a served bearing model.")
    parser.add_argument("url", help="where edgeseal-serve answers, as http://127.0.0.1:8000")
    parser.add_argument("--model", default="bearing", help="name of the model (default: %(default)s)")
    parser.add_argument("--plant", choices=list(PLANTS), default="first", help="whose machines (default: %(default)s)")
    parser.add_argument("--count", type=int, default=8, help="how many signals (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
