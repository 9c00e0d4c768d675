"""How the person's page looks: one style sheet and one icon, served by edgeseal-serve itself.

Follows the browser's light or dark scheme; one column on a phone, facts beside the plot on a desk.
"""

from __future__ import annotations

from typing import Final

ICON: Final = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#1f5fa8"/>'
    '<path d="M4 8.5 7 11.5 12 5" fill="none" stroke="#fff" stroke-width="2" stroke-linecap="round"/></svg>'
)

STYLE: Final = """\
:root {
  color-scheme: light dark;
  --ground: #f3f5f7; --card: #ffffff; --ink: #1b2530; --soft: #55636f; --line: #d3dae0;
  --bar: #2f74b5; --link: #1f5fa8; --good: #1c6b3a; --warn: #8a5300; --bad: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #12171c; --card: #1b2229; --ink: #e6ebef; --soft: #a3b0bb; --line: #37424c;
    --bar: #5c9fdd; --link: #8dbdf0; --good: #7ed09a; --warn: #f0b860; --bad: #ff9088;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
header, main, footer { max-width: 62rem; margin: 0 auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.25rem; margin: 1.2rem 0 .2rem; }
h2 { font-size: 1.15rem; margin: 0; }
p { margin: .4rem 0; }
a { color: var(--link); }
a:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.verdict { font-size: 1.1rem; font-weight: 600; margin: 0 0 1rem; }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
.soft, footer { color: var(--soft); font-size: .875rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
section { padding: 1rem; margin: 0 0 1rem; }
.top { display: flex; flex-wrap: wrap; gap: 0 1rem; justify-content: space-between; align-items: baseline; }
.state { font-weight: 600; margin: 0; }
.mark { display: inline-block; width: 1.3em; text-align: center; }
.body { display: grid; gap: 0 2rem; grid-template-columns: minmax(0, 1fr); }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .3rem 1rem; margin: .8rem 0; }
dt { color: var(--soft); } dd { margin: 0; }
.note { border-left: .25rem solid currentColor; padding: .1rem 0 .1rem .8rem; margin: .8rem 0; }
.note p { color: var(--ink); margin: 0; }
.note strong { display: block; }
figure { margin: .8rem 0; }
svg { display: block; width: 100%; max-width: 34rem; height: auto; }
svg rect { fill: var(--bar); }
svg text { fill: var(--soft); font-size: 13px; text-anchor: middle; }
svg text.end { text-anchor: end; }
svg text.value { fill: var(--ink); stroke: var(--card); stroke-width: 3px; paint-order: stroke; }
svg .grid { stroke: var(--line); fill: none; }
svg .before { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 4 3; fill: none; }
figcaption { color: var(--soft); font-size: .875rem; display: flex; flex-wrap: wrap; gap: 0 1.2rem; }
.key { display: inline-block; width: 1.4rem; margin-right: .4rem; vertical-align: middle; }
.key.bar { height: .7rem; background: var(--bar); }
.key.line { border-top: 2px dashed var(--ink); }
table, .body > .wide { margin: .4rem 0 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .875rem; padding-top: .4rem; }
th, td { text-align: right; padding: .3rem 0 .3rem .8rem; border-top: 1px solid var(--line); font-weight: normal; }
thead th { color: var(--soft); border: 0; font-size: .875rem; vertical-align: bottom; }
tbody th { font-weight: 600; }
th:first-child { text-align: left; padding-left: 0; }
td.bad { font-weight: 600; }
footer { padding-bottom: 2rem; }
@media (min-width: 52rem) {
  .body { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); }
  .body > .wide { grid-column: 1 / -1; }
}
@media (max-width: 34rem) {
  header, main, footer { padding: 0 .6rem; }
  section { padding: .8rem; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd { margin-bottom: .5rem; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table, caption, tbody, tr, th, td { display: block; }
  tr { border-top: 1px solid var(--line); padding: .4rem 0; }
  th, td { border: 0; padding: .1rem 0; }
  td { display: flex; justify-content: space-between; gap: 1rem; }
  td::before { content: attr(data-label); color: var(--soft); font-weight: normal; }
}
"""
