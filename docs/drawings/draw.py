#!/usr/bin/env python3
"""Draws the pictures of HOW_IT_WORKS.md: `python3 docs/drawings/draw.py` writes hand-over.svg and lease.svg beside itself.

With --check it writes nothing and fails if a picture is not the one that it would write.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
INK, PALE, HELD, WAIT, DEAD = "#24292f", "#8c959f", "#2da44e", "#d4a72c", "#cf222e"


class Drawing:
    """Lanes of time, from left to right, on white: readable on dark pages too."""

    def __init__(self, width, height, title):
        self.size = width, height
        self.parts = [f'<title>{title}</title>', f'<rect width="{width}" height="{height}" fill="#ffffff"/>']

    def text(self, x, y, text, size=13, fill=INK, anchor="start", weight="normal"):
        text = text.replace("&", "&amp;").replace("<", "&lt;")
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}" text-anchor="{anchor}" font-weight="{weight}">{text}</text>'
        )

    def lane(self, y, name, x0=150, x1=None):
        self.text(x0 - 12, y + 5, name, anchor="end", weight="bold")
        self.parts.append(f'<line x1="{x0}" y1="{y}" x2="{x1 or self.size[0] - 20}" y2="{y}" stroke="{PALE}"/>')

    def bar(self, x0, x1, y, fill, text, ink="#ffffff"):
        self.parts.append(f'<rect x="{x0}" y="{y - 13}" width="{x1 - x0}" height="26" rx="4" fill="{fill}"/>')
        self.text((x0 + x1) / 2, y + 5, text, fill=ink, anchor="middle")

    def arrow(self, x0, y0, x1, y1, text="", side=8, anchor="start", at=0.5, dash=False):
        dashes = ' stroke-dasharray="4 3"' if dash else ""
        self.parts.append(
            f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="{INK}" stroke-width="1.5"{dashes} marker-end="url(#head)"/>'
        )
        if text:
            self.text(x0 + (x1 - x0) * at + side, y0 + (y1 - y0) * at + 4, text, size=12, anchor=anchor)

    def cross(self, x, y):
        for a, b in ((-8, 8), (8, -8)):
            self.parts.append(
                f'<line x1="{x - 8}" y1="{y + a}" x2="{x + 8}" y2="{y + b}" stroke="{DEAD}" stroke-width="3"/>'
            )

    def svg(self):
        width, height = self.size
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
            ' font-family="sans-serif">\n<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
            f' markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>\n'
        )
        return head + "\n".join(self.parts) + "\n</svg>\n"


def hand_over():
    d = Drawing(860, 330, "mpm: a release wakes the first in line; a death is told by the kernel")
    word, a, b, c = 60, 130, 200, 270
    for y, name in ((word, "word in the file"), (a, "A, in C"), (b, "B, in Python"), (c, "C, in Node")):
        d.lane(y, name)
    d.bar(160, 330, word, HELD, "held by A, 7")
    d.bar(342, 560, word, HELD, "held by B, 8")
    d.bar(560, 640, word, DEAD, "B is dead")
    d.bar(652, 830, word, HELD, "held by C, 9: abandoned")
    d.bar(160, 330, a, HELD, "works")
    d.bar(190, 342, b, WAIT, "asleep, ticket 41", INK)
    d.bar(342, 560, b, HELD, "works")
    d.bar(230, 652, c, WAIT, "asleep, ticket 42", INK)
    d.bar(652, 830, c, HELD, "works")
    d.arrow(330, a + 14, 341, b - 14, "1  swaps the word, wakes the lowest ticket")
    d.cross(560, b)
    d.text(612, b - 36, "2  kill -9: the kernel drops", size=12)
    d.text(612, b - 20, "B's byte lock, and C hears of it", size=12)
    d.arrow(570, b + 10, 650, c - 14, "3  C asks for it, swaps the word", side=12, at=0.5)
    d.text(20, 28, "mpm: the word decides who owns, the kernel who lives, the tickets who is next", size=15, weight="bold")
    return d.svg()


def lease():
    d = Drawing(860, 360, "Redis: a lease counted from before it was asked for, and the token that guards what it protects")
    server, a, b, store = 70, 150, 230, 310
    for y, name in ((server, "Redis"), (a, "holder A"), (b, "waiter B"), (store, "what it protects")):
        d.lane(y, name)
    d.text(20, 28, "rpm+redis: A relies on its lease for less time than the server gives it", size=15, weight="bold")
    d.bar(180, 590, server, HELD, "the key is A's for 10 s, token 7")
    d.bar(602, 830, server, HELD, "the key is B's, token 8")
    d.arrow(160, a - 14, 180, server + 14, "1  asks", side=12, at=0.25)
    d.bar(160, 330, a, HELD, "relies on it")
    d.bar(330, 560, a, PALE, "stopped, swapped out, cut off")
    d.text(556, a - 22, "2  by its own clock: LOST", size=12, anchor="end")
    d.bar(230, 600, b, WAIT, "in line, asleep", INK)
    d.bar(614, 830, b, HELD, "works")
    d.arrow(594, server + 14, 612, b - 14, "3  the lease ended: B's turn", at=0.25)
    d.arrow(650, b + 14, 650, store - 14, "4  writes, token 8", side=-8, anchor="end")
    d.bar(632, 668, store, HELD, "8")
    d.arrow(520, a + 14, 764, store - 14, dash=True)
    d.text(830, store + 32, "5  a late write, token 7: refused", size=12, fill=DEAD, anchor="end")
    d.bar(752, 788, store, DEAD, "7")
    return d.svg()


def main():
    check = sys.argv[1:] == ["--check"]
    for name, draw in (("hand-over.svg", hand_over), ("lease.svg", lease)):
        path, picture = HERE / name, draw()
        if check and (not path.exists() or path.read_text() != picture):
            sys.exit(f"{path} is not what draw.py draws; run it")
        if not check:
            path.write_text(picture)


if __name__ == "__main__":
    main()
