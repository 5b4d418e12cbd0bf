"""How the page looks."""

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5c656e; --rule: #dfe3e6; --paper: #fff;
  --band: #f5f6f7; --warn: #a04400; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e6e8; --soft: #9aa4ad; --rule: #343a40; --paper: #16181b; --band: #1f2226;
    --warn: #f0a060; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; font-weight: 650; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; font-weight: 650; margin: 3rem 0 .5rem; padding-top: 1rem;
  border-top: 1px solid var(--rule); }
h3 { font-size: 1.02rem; font-weight: 600; margin: 2rem 0 .4rem; }
h4 { font-size: .95rem; font-weight: 600; margin: 1rem 0 .3rem; }
.lead, figcaption, .note { color: var(--soft); }
.lead { margin: 0 0 1rem; }
figcaption, .note { font-size: .87rem; max-width: 52rem; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
pre { background: var(--band); padding: .6rem .8rem; border-radius: 6px; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; }
pre, code { font: .83rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
code { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }
.wide > table { min-width: 100%; }
th, td { padding: .22rem .45rem; text-align: right; vertical-align: top; white-space: nowrap; }
th { font-weight: 500; }
thead th { color: var(--soft); vertical-align: bottom; border-bottom: 1px solid var(--rule); }
thead th[colspan] { text-align: center; }
th[scope=row], thead th:first-child, td.mark, td.weak, td.words { text-align: left; }
thead tr:first-child th:nth-last-child(-n+2) { text-align: left; }
thead tr + tr th:first-child { text-align: right; }
tbody th[scope=rowgroup] { text-align: left; background: var(--band); font-weight: 650; }
tbody tr + tr td, tbody tr + tr th[scope=row] { border-bottom: 1px solid var(--rule); }
td.words { white-space: normal; min-width: 8.5rem; }
td.words, td.mark { color: var(--soft); }
td.weak { color: var(--warn); font-weight: 600; }
details { margin: 2rem 0; }
summary { cursor: pointer; font-weight: 600; }
li { margin: .15rem 0; }
@media print { main { max-width: none; padding: 0; } figure, tr { break-inside: avoid; } }
"""
