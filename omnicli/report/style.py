"""The style sheet of the report: one column, light and dark, nothing wider than a phone."""

CSS = """
:root{color-scheme:light dark;--bg:#fbfaf8;--card:#fff;--ink:#1d1f23;--soft:#5b6069;--line:#dfddd8;--video:#1f5fbf;
--audio:#b4530a;--mark:#0d7a4f;--bad:#a81e2d;--fill:#e9e7e2}
@media (prefers-color-scheme:dark){:root{--bg:#14161a;--card:#1c1f25;--ink:#e8e6e1;--soft:#a3a8b2;--line:#343841;
--video:#7db0ff;--audio:#ffa657;--mark:#5fd3a2;--bad:#ff8f9a;--fill:#2c3038}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1rem;background:var(--bg);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.3rem;margin:.5rem 0}h2{font-size:1.1rem;margin:0 0 .5rem}h3{font-size:.95rem;margin:1.4rem 0 .4rem}
a{color:var(--video)}
article,section{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem;margin:1rem 0}
.answer{font-size:1.35rem;line-height:1.35;margin:.3rem 0;white-space:pre-wrap}
.question{white-space:pre-wrap}
.soft,figcaption,.axis{color:var(--soft);font-size:.85rem}
.bad{color:var(--bad)}
p{margin:.3rem 0}ul,ol{margin:.3rem 0;padding-left:1.3rem}
figure{margin:.5rem 0}
svg{display:block;width:100%}
.strip .marks{position:relative;height:1.3rem}
.at{position:absolute;transform:translateX(-50%);font-size:.8rem;font-weight:600;color:var(--mark)}
.strip svg{background:var(--fill);border-radius:.2rem}
rect.video{fill:var(--video)}rect.audio{fill:var(--audio)}
rect.lane{fill:var(--mark)}rect.mark{fill:none;stroke:var(--mark);stroke-width:2;vector-effect:non-scaling-stroke}
.axis{display:flex;justify-content:space-between}
.key{display:inline-block;margin-right:1rem}
.key:before{content:"";display:inline-block;width:.7rem;height:.7rem;margin-right:.35rem}
.key.video:before{background:var(--video)}.key.audio:before{background:var(--audio)}
.key.mark:before{border:2px solid var(--mark)}
.evidence{display:grid;grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr));gap:.8rem;padding:0;list-style:none}
.evidence img,.evidence .none{display:block;width:100%;border-radius:.3rem;background:var(--fill)}
.evidence .none{padding:.6rem;color:var(--soft);font-size:.8rem}
.evidence b{color:var(--mark)}
.bar{width:100%;height:.6rem}.bar .full{fill:var(--fill)}.bar .part{fill:var(--video)}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;padding:.25rem .6rem .25rem 0;border-bottom:1px solid var(--line);vertical-align:top}
.stages td:nth-child(2){width:45%;vertical-align:middle}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.scatter{max-width:30rem}.scatter text{font-size:11px;fill:var(--soft)}.scatter .name{font-weight:600;fill:var(--ink)}
.grid{stroke:var(--line)}.front{fill:none;stroke:var(--mark);stroke-width:1.5;stroke-dasharray:4 3}
circle{fill:var(--video)}
pre{white-space:pre-wrap;background:var(--fill);border-radius:.3rem;padding:.6rem;font-size:.8rem;margin:.4rem 0}
summary{cursor:pointer}
@media (max-width:40rem){.compare thead{display:none}.compare tr{display:block;border-bottom:1px solid var(--line);
padding:.4rem 0}.compare td{display:flex;justify-content:space-between;gap:1rem;border:0;padding:.1rem 0;
white-space:normal}.compare td:before{content:attr(data-label);color:var(--soft);flex:none}
.compare td>*{text-align:right;min-width:0}}
@media print{body{max-width:none}article{break-inside:avoid}}
"""
