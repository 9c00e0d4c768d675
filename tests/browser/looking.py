"""What tests ask a page: what it loaded, what the browser complained of, what does not fit, what cannot be read."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Dialog, Page

# Text that a person sees, with its contrast to what lies behind it (WCAG 2.2, 1.4.3; relative luminance as there).
_CONTRASTS = """() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const linear = v => v <= 10.31475 ? v / 3294.6 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, words = walk.currentNode.data.trim();
    if (!words || e.tagName === 'title' || !e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const ink = parse(e instanceof SVGElement ? style.fill : style.color);
    found.push([words.slice(0, 40), ratio(ink, ground(e))]);
  }
  for (const e of document.querySelectorAll('svg rect'))
    found.push(['bar', ratio(parse(getComputedStyle(e).fill), ground(e))]);
  return found;
}"""
_BEYOND = """() => {
  const wide = document.documentElement.clientWidth, found = [];
  for (const e of document.querySelectorAll('body *')) {
    const r = e.getBoundingClientRect();
    if (r.width > 1 && (r.right > wide + .5 || r.left < -.5)) found.push(`${e.tagName} ${e.textContent.slice(0, 40)}`);
  }
  return document.documentElement.scrollWidth > wide ? ['the page scrolls sideways', ...found] : found;
}"""


@dataclass
class Seen:
    """A page and what happened while it was shown."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(self.page.locator("body").inner_text().split())

    def refuse(self, dialog: Dialog) -> None:
        """Note that the page said something by itself, and close it."""
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def contrasts(self) -> list[tuple[str, float]]:
        """Each visible text and each bar, with its contrast."""
        return cast("list[tuple[str, float]]", self.page.evaluate(_CONTRASTS))

    def beyond(self) -> list[str]:
        """What reaches beyond the sides of the window."""
        return cast("list[str]", self.page.evaluate(_BEYOND))


@contextmanager
def seen(browser: Browser, url: str, *, width: int = 1200, alter: Any = None, **options: Any) -> Iterator[Seen]:
    """Open `url`. `alter` changes the HTML on its way, for negative controls."""
    context = browser.new_context(viewport={"width": width, "height": 800}, **options)
    try:
        page = context.new_page()
        found = Seen(page)
        page.on("request", lambda r: found.requests.append(r.url))
        page.on("requestfailed", lambda r: found.complaints.append(f"{r.url}: {r.failure}"))
        page.on("console", lambda m: found.complaints.append(m.text))
        page.on("pageerror", lambda e: found.complaints.append(str(e)))
        page.on("dialog", found.refuse)
        if alter is not None:

            def altered(route: Any) -> None:
                answer = route.fetch()
                route.fulfill(response=answer, body=alter(answer.text()))

            page.route("**/?hold", altered)
        page.goto(url)
        yield found
    finally:
        context.close()
