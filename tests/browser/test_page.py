"""The person's page of a real edgeseal-serve in a real Chromium: what it says, how it looks, what it must never do."""

from __future__ import annotations

import http.client
import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")
pytest.importorskip("uvicorn", reason="pip install 'edgeseal[serve]'")

from tests.browser.looking import seen
from tests.unit import runtime_world as world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0] * 4}]}).encode()
ATTACK = "<script>alert('mark')</script><img src=x onerror=alert('image')><a href='javascript:alert(1)'>go</a>"
LONG = "p" + "x" * 62 + "q"
WIDTHS = (320, 360, 768, 1280, 1920)


def ask(server: world.Serve, model: str, times: int, body: bytes = BODY) -> str:
    """Return the version that answered last."""
    connection = http.client.HTTPConnection(server.address, timeout=30)
    version = ""
    for _ in range(times):
        connection.request("POST", f"/v2/models/{model}/infer", body)
        version = str(json.loads(connection.getresponse().read()).get("model_version", ""))
    connection.close()
    return version


@pytest.fixture(scope="module")
def server() -> Iterator[world.Serve]:
    """Press: release 7 after release 6, both asked. Ocr: does not load. A model with the longest name, never asked."""
    with world.repository() as models:
        for model, release in (("press", 6), (LONG, 1)):
            world.publish(models, model, release, 1.0)
            models.switch(model, release)
        (models.stage("ocr", 3) / "model.onnx").write_bytes(b"garbage")
        models.publish("ocr", 3)
        models.switch("ocr", 3)
        note: dict[str, Any] = {
            "gate": {"7": {"cases": 12, "latency_ms": 3.1, "memory_mb": 48.2}},
            "rollback": {"release": 5, "reason": f"31 of 40 answers failed: {ATTACK}", "at": int(time.time()) - 7300},
        }
        note["refused"] = {"release": 8, "reason": "acceptance vector 3: 2 of 4 values differ", "at": 1_795_000_000}
        note["shadow"] = {"7": "120 answers compared, 0 differ"}
        note["watch"] = {"release": 7, "until": int(time.time()) + 600}
        models.note("press", note)
        models.note(LONG, {"rollback": {"release": 2, "reason": "A" * 400, "at": 0}})
        with world.serving(models) as running:
            ask(running, "press", 20)
            world.publish(models, "press", 7, 2.0)
            models.switch("press", 7)
            world.until(lambda: ask(running, "press", 1) == "7", "release 7 serves")
            ask(running, "press", 40)
            ask(running, "press", 2, b"{")
            world.until(lambda: "release 6" in _text(running), "what the worker before it counted has arrived")
            yield running


def _text(server: world.Serve) -> str:
    connection = http.client.HTTPConnection(server.address, timeout=30)
    connection.request("GET", "/?hold")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


# What it says ---------------------------------------------------------------------------------------------------------


def test_what_a_person_reads(browser: Browser, server: world.Serve) -> None:
    with seen(browser, f"{server.url}/?hold") as shown:
        text = shown.text
    for words in (
        "Not served: 1 of 3 models.",
        "release 7 serves",
        "passed: 12 cases, 3.1 ms an answer (median), 48.2 MiB of memory",
        "Last rollback: release 5 was taken back. 31 of 40 answers failed: <script>alert('mark')",
        "UTC (2 h ago)",
        "Last refusal: release 8 was not let in. acceptance vector 3: 2 of 4 values differ",
        "120 answers compared, 0 differ",
        "UTC; the release before stays ready",
        "Release 3 does not load.",
        "not an ONNX model",
        "no request yet",
        "answers (%)",
        "time to answer (ms)",
    ):
        assert words in text


def test_before_anything_is_installed_and_from_then_on_by_itself(browser: Browser) -> None:
    """The only test that waits for the page to load itself again."""
    with world.repository() as models, world.serving(models) as running, seen(browser, running.url) as shown:
        assert "No model is installed yet." in shown.text
        assert "edgeseal-agent status" in shown.text
        world.publish(models, "press", 1, 1.0)
        models.switch("press", 1)
        shown.page.get_by_text("release 1 serves").wait_for(timeout=60_000)
        assert "no request yet" in shown.text
        assert shown.complaints == []


def test_without_scripts_it_is_the_same_page(browser: Browser, server: world.Serve) -> None:
    def told(*, scripts: bool) -> str:
        with seen(browser, f"{server.url}/?hold", java_script_enabled=scripts) as shown:
            return re.sub(r"\((\d+ \w+ ago|just now)\)", "", shown.text.split(", as of ")[0])  # time goes on

    assert told(scripts=False) == told(scripts=True)


# What it must never do ------------------------------------------------------------------------------------------------


def test_it_asks_nobody_else_and_the_browser_has_nothing_to_complain_of(browser: Browser, server: world.Serve) -> None:
    with seen(browser, f"{server.url}/?hold") as shown:
        shown.page.wait_for_load_state("networkidle")
        assert {url.removeprefix(server.url) for url in shown.requests} - {"/icon.svg"} == {"/?hold", "/style.css"}
        assert shown.complaints == []
        assert shown.page.context.cookies() == []


@pytest.mark.parametrize(
    "smuggled",
    [
        "<script>document.title='owned'</script>",
        "<script src=//elsewhere.test/x.js></script>",
        "<img src=//elsewhere.test/x.png>",
        "<link rel=stylesheet href=//elsewhere.test/x.css>",
        "<p style='color:red'>",
        "<iframe src=//elsewhere.test/></iframe>",
    ],
)
def test_what_got_past_the_escaping_would_be_blocked_and_seen(
    browser: Browser, server: world.Serve, smuggled: str
) -> None:
    # Negative control of the test above, and the second line of defence: the policy.
    with seen(browser, f"{server.url}/?hold", alter=lambda html: html.replace("<main>", f"<main>{smuggled}")) as shown:
        shown.page.wait_for_load_state("networkidle")
        assert "Content Security Policy" in " ".join(shown.complaints)
        assert shown.page.title() != "owned"


def test_text_from_a_release_runs_nothing(browser: Browser, server: world.Serve) -> None:
    with seen(browser, f"{server.url}/?hold") as shown:
        assert ATTACK in shown.text
        assert shown.page.locator("script, img, a[href^=javascript]").count() == 0
        assert shown.dialogs == []


def test_markup_would_be_seen(browser: Browser, server: world.Serve) -> None:
    # Negative control: without the escaping the elements are there.
    def unescaped(html: str) -> str:
        return html.replace("&lt;", "<").replace("&gt;", ">").replace("&#x27;", "'")

    with seen(browser, f"{server.url}/?hold", alter=unescaped) as shown:
        assert shown.page.locator("script, img, a[href^=javascript]").count() == 3


# How it looks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_reaches_beyond_the_window(browser: Browser, server: world.Serve, width: int) -> None:
    with seen(browser, f"{server.url}/?hold", width=width) as shown:
        assert shown.beyond() == []


def test_what_does_not_fit_would_be_seen(browser: Browser, server: world.Serve) -> None:
    def wide(html: str) -> str:
        return html.replace("<main>", f"<main><pre>{'x' * 200}</pre>")

    with seen(browser, f"{server.url}/?hold", width=360, alter=wide) as shown:
        assert shown.beyond()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(browser: Browser, server: world.Serve, scheme: str) -> None:
    """4.5 to 1 for text, 3 to 1 for what is drawn (WCAG 2.2, 1.4.3 and 1.4.11)."""
    with seen(browser, f"{server.url}/?hold", color_scheme=scheme) as shown:
        contrasts = shown.contrasts()
        ground = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert len(contrasts) > 60
    assert [(what, ratio) for what, ratio in contrasts if ratio < (3 if what == "bar" else 4.5)] == []
    assert (min(int(n) for n in ground[4:-1].split(",")) > 200) == (scheme == "light")


def test_text_too_pale_would_be_seen(browser: Browser, server: world.Serve) -> None:
    with seen(browser, f"{server.url}/?hold") as shown:
        shown.page.evaluate("document.documentElement.style.setProperty('--soft', '#9aa5ae')")
        assert [what for what, ratio in shown.contrasts() if ratio < 4.5]


_SIZES = "all => all.map(e => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().d || 13)"


def test_the_plot_has_axes_with_units_that_a_phone_can_show(browser: Browser, server: world.Serve) -> None:
    with seen(browser, f"{server.url}/?hold", width=320) as shown:
        sizes = shown.page.locator("svg text").evaluate_all(_SIZES)
        bars = shown.page.locator("svg rect").evaluate_all("all => all.map(e => e.getBoundingClientRect().height)")
        line = shown.page.locator("svg .before").count()
    assert min(sizes) >= 9
    assert min(bars) >= 1
    assert line == 1  # release 6, to hold release 7 against


# Who does not see or has no mouse -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [360, 1200])
def test_it_is_told_as_it_is_shown(browser: Browser, server: world.Serve, width: int) -> None:
    """Roles and names, on a phone too, where the table is laid out as blocks."""
    with seen(browser, f"{server.url}/?hold", width=width) as shown:
        page = shown.page
        assert page.locator("html").get_attribute("lang") == "en"
        assert page.title().startswith("Not served: 1 of 3 models.")
        assert [h.inner_text() for h in page.get_by_role("heading", level=2).all()] == ["ocr", "press", LONG]
        press = page.get_by_role("region", name="press")
        assert "Time to answer of release 7: " in (press.get_by_role("img").get_attribute("aria-label") or "")
        table = press.get_by_role("table")
        assert [cell.inner_text() for cell in table.get_by_role("rowheader").all()] == ["release 7", "release 6"]
        assert table.get_by_role("columnheader").count() == 8
        assert [len(row.get_by_role("cell").all()) for row in table.get_by_role("row").all()] == [0, 7, 7]
        assert page.get_by_role("banner").count() == page.get_by_role("main").count() == 1


def test_by_keyboard_alone(browser: Browser, server: world.Serve) -> None:
    with seen(browser, server.url) as shown:
        page = shown.page
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        assert focused.inner_text() == "Hold it"
        assert focused.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        page.wait_for_url("**/?hold")
        assert page.locator("meta[http-equiv=refresh]").count() == 0
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_url(f"{server.url}/")
        assert page.locator("meta[http-equiv=refresh]").count() == 1


def test_in_the_colours_that_a_person_chose(browser: Browser, server: world.Serve) -> None:
    """High contrast: signs and words say what colour says otherwise, and the bars stay."""
    with seen(browser, f"{server.url}/?hold", forced_colors="active") as shown:
        assert shown.page.locator(".mark").all_inner_texts()
        bar = shown.page.locator("svg rect").first.evaluate("e => getComputedStyle(e).fill")
        card = shown.page.locator("section").first.evaluate("e => getComputedStyle(e).backgroundColor")
        assert bar != card
