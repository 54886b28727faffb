"""The frame of report.html and table.html: one self-contained file, light and dark, any width."""

import html

STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --soft: #59636e; --line: #d8dee4; --back: #fff;
  --box: #f6f8fa; --blue: #0969da; --pale: #a9bcd0; --green: #1a7f37; --red: #cf222e;
  --orange: #bc4c00; --mark: #ffe08a }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --soft: #9198a1; --line: #3d444d;
  --back: #0d1117; --box: #151b23; --blue: #4493f8; --pale: #3f5878; --green: #3fb950;
  --red: #f85149; --orange: #f0883e; --mark: #6b5300 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1040px; padding: 1.5rem 1rem 4rem; background: var(--back);
  color: var(--text); font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif;
  overflow-wrap: anywhere }
body.wide { max-width: 1600px }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .2rem }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.6rem 0 .6rem }
p { margin: .6rem 0 } small, .soft { color: var(--soft) } small { font-size: .85em }
.right { color: var(--green) } .wrong { color: var(--red) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem;
  margin: 1.2rem 0 }
.tile { background: var(--box); border: 1px solid var(--line); border-radius: 8px;
  padding: .7rem .9rem }
.tile b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums }
.tile span { color: var(--soft); font-size: .85rem }
.alarm { border-left: 4px solid var(--red); background: var(--box); padding: .6rem .9rem;
  margin: .8rem 0 }
.note { border-left: 4px solid var(--orange); background: var(--box); padding: .6rem .9rem;
  margin: .8rem 0 }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100% }
td, th { padding: .45rem .7rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: normal }
th { color: var(--soft); font-weight: 600; font-size: .87rem; white-space: nowrap }
td:first-child { white-space: nowrap }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap } td small { margin-left: .25em }
.bar { display: block; height: 5px; margin-top: 4px; background: var(--line); border-radius: 3px }
.bar i { display: block; height: 100%; background: var(--blue); border-radius: 3px }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; margin: .8rem 0 }
dt { font-weight: 600 } dd { margin: 0; color: var(--soft) }
pre { background: var(--box); border: 1px solid var(--line); border-radius: 8px; padding: .9rem;
  overflow-x: auto; font: 12.5px/1.4 ui-monospace, SFMono-Regular, Menlo, monospace;
  overflow-wrap: normal }
pre b { background: var(--mark); border-radius: 3px } code { font-family: ui-monospace, monospace }
details { border: 1px solid var(--line); border-radius: 8px; padding: .6rem .9rem; margin: .6rem 0 }
summary { cursor: pointer; font-weight: 600 }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .87rem; color: var(--soft) }
.key i { display: inline-block; width: 1.4em; height: 3px; margin-right: .4em;
  vertical-align: middle; background: var(--pale) }
.key i.smooth { background: var(--blue) } .key i.checked { background: var(--orange) }
.chart { display: grid; grid-template-columns: 3rem 1fr; margin: .8rem 0; font-size: .8rem;
  color: var(--soft) }
.chart svg { width: 100%; height: 16rem; overflow: visible; grid-column: 2 }
.chart svg.rate { height: 3rem; margin-top: .8rem }
.chart path { fill: none; stroke: var(--pale); stroke-width: 1; vector-effect: non-scaling-stroke }
.chart path.grid { stroke: var(--line) } .chart path.smooth { stroke: var(--blue);
  stroke-width: 2 } .chart path.checked { stroke: var(--orange) }
.chart path.dot { stroke: var(--orange); stroke-width: 7; stroke-linecap: round }
.axis { position: relative } .axis span { position: absolute; right: .6rem;
  transform: translateY(-50%); font-variant-numeric: tabular-nums }
.steps { grid-column: 2; display: flex; justify-content: space-between; padding-top: .2rem }
.problem { border: 1px solid var(--line); border-radius: 8px; margin: .8rem 0; overflow: hidden }
.problem > p { margin: 0; padding: .7rem .9rem; background: var(--box); white-space: pre-wrap }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)) }
.answer { padding: .7rem .9rem; border-top: 3px solid var(--line) }
.answer.right { border-color: var(--green); color: inherit }
.answer.wrong { border-color: var(--red); color: inherit }
.answer p { white-space: pre-wrap; margin: .3rem 0 }
@media (max-width: 600px) { dl { grid-template-columns: 1fr; gap: 0 } dd { margin-bottom: .5rem }
  td, th { padding: .45rem .4rem } td:first-child, th { white-space: normal }
  td.n small { display: block; margin: 0; font-size: .75em } td small span { display: block }
  .tile:first-child { grid-column: 1 / -1 }
  .chart svg { height: 12rem }
  .chart { grid-template-columns: 2.6rem 1fr } }
"""


def page(title: str, body: str, wide: bool = False) -> str:
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{esc(title)}</title><style>{STYLE}</style>
<body{' class="wide"' * wide}>
<h1>{esc(title)}</h1>
{body}
</body></html>
"""


def esc(text: object) -> str:
    return html.escape(str(text))


def paragraph(text: str, small: bool = False) -> str:
    if not text:
        return ""
    return f"<p><small>{esc(text)}</small></p>" if small else f"<p>{esc(text)}</p>"
