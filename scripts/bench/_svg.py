"""What the pictures of the documentation have in common: size, colours for light and dark, text."""

from html import escape

WIDTH, HEIGHT = 860, 340
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 44, 44

# Whoever shows it may not follow the reader's choice of light or dark, so it brings its own ground.
_STYLE = """
.ground{fill:#fff}.text{fill:#222}.soft{fill:#555}.rule{stroke:#e6e6e6}.line{stroke:#555}
@media(prefers-color-scheme:dark){.ground{fill:#15181c}.text{fill:#e4e8ec}.soft{fill:#a3adb7}.rule{stroke:#2d343b}
.line{stroke:#e4e8ec}}
""".strip()


def picture(title: str, parts: list[str]) -> str:
    """The whole file; `title` is what is said to whoever cannot see it."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            'font-family="system-ui, sans-serif" font-size="13">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def text(x: float, y: float, said: str, *, kind: str = "soft", anchor: str = "start") -> str:
    """A line of text; `kind` is `text` or `soft`."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(said)}</text>'
