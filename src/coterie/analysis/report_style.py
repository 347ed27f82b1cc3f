"""The style sheet of a report: light or dark as the reader's machine is, one column that fits a phone, no script."""

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark;
  --ground: #ffffff; --ink: #1d1f21; --soft: #5c6166; --grid: #d9dcdf; --mark: #0b63a5; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #15181b; --ink: #e6e8ea; --soft: #a0a6ac; --grid: #3a4046; --mark: #7cc0f5; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 50rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .4rem; line-height: 1.25; }
a { color: var(--mark); } p { margin: .4rem 0 .8rem; } .soft, .note { color: var(--soft); font-size: .875rem; }
dl { display: grid; grid-template-columns: auto 1fr; gap: .1rem 1rem; margin: 0; font-size: .875rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
nav ol { padding-left: 1.4rem; } nav li { margin: .5rem 0; }
figure { margin: .8rem 0; } figure svg, figure img { display: block; width: 100%; height: auto; max-width: 42rem; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--mark); font-size: .875rem; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .8125rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid var(--grid); vertical-align: top; }
th { font-weight: 600; } td.number { text-align: right; white-space: nowrap; } td { white-space: pre-wrap; }
"""
