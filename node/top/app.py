"""The screen: one worker follows the feed, every event is drawn, keys choose what."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import replace
from typing import ClassVar, Final

from rich.segment import Segments
from rich.text import Text
from rich.traceback import Traceback
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input

from node.dashboard.decisions import NOBODY
from node.dashboard.feed import Hello, Tick
from node.top import board
from node.top.board import View
from node.top.client import Away, CannotRead, Client
from node.top.decisions import as_line, columns, details
from node.top.filter import HINT, Filter, FilterError, parse_filter
from node.top.glyphs import Glyphs
from node.top.lines import fitted, head, said, title
from node.top.listing import Listing
from node.top.pane import Pane
from node.top.seen import Kind, Seen

_LEAST_LIST: Final = 6  # lines for the decisions: a rule, a head, and four of them
_ROOM_FOR_DETAILS: Final = 34
_FOOT: Final = "1-4 views  / filter  w by whom  enter details  space hold  ? keys  q quit"
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Top(App[None]):
    """`client` is whom it watches. Colours are the terminal's own; with NO_COLOR there are none."""

    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = ""
    INLINE_PADDING = 0
    CSS = """
    Screen { background: ansi_default; color: ansi_default; layout: vertical; overflow: hidden; }
    Pane { height: 1; }
    #list { height: 1fr; }
    #filter { display: none; height: 1; border: none; padding: 0; background: ansi_default; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(view.value), f"view({view.value})", show=False) for view in View),
        Binding("q", "leave", show=False),
        Binding("ctrl+c", "leave", show=False, priority=True),
        Binding("ctrl+q", "leave", show=False, priority=True),
        Binding("question_mark,h", "keys", show=False),
        Binding("slash", "filter", show=False),
        Binding("w", "next_who", show=False),
        Binding("space", "hold", show=False),
        Binding("r", "hurry", show=False),
        Binding("escape", "step_back", show=False, priority=True),
        Binding("enter", "details", show=False),
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home,g", "move(-100000)", show=False),
        Binding("end,G", "move(100000)", show=False),
    ]

    def __init__(self, client: Client, glyphs: Glyphs) -> None:
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"  # nothing of ours has a theme's colours; this is what lets the terminal's through
        self.animation_level = "none"
        self.seen = Seen(url=client.place.url)
        self._client = client
        self._glyphs = glyphs
        self._held: Seen | None = None
        self._view = View.OVERVIEW
        self._help = False
        self._details: bool | None = None  # None: if there is room
        self._listing = Listing()
        self._said = ""
        self._scrolled = 0

    def compose(self) -> ComposeResult:
        """One pane below the other."""
        for name in ("heading", "notices", "board", "list-head", "list", "details"):
            yield Pane(id=name)
        yield Input(id="filter", placeholder=HINT)
        yield Pane(id="foot")

    def on_mount(self) -> None:
        """Begin to follow; a signal ends it as a key does, so that the terminal is given back as it was."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.exit)
        self.run_worker(self._follow(), name="feed")
        self.set_interval(0.5, self._count_down)

    def on_unmount(self) -> None:
        """Leave signals as they were found."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    def on_resize(self) -> None:
        """Lay it out anew."""
        self._draw()

    def _fatal_error(self) -> None:
        """End with a traceback, as Textual does, but without the values of variables: the key may be among them."""
        self.bell()
        traceback = Traceback(show_locals=False, width=None)
        self._exit_renderables.append(Segments(self.console.render(traceback, self.console.options)))
        self._close_messages_no_wait()

    async def _follow(self) -> None:
        async for each in self._client.events():
            match each:
                case Hello():
                    self.seen.url = self._client.place.url
                    self.seen.begin(each)
                    self._search()
                case Tick():
                    self.seen.go_on(each)
                    self._listing.add(each)
                case Away():
                    self.seen.url = self._client.place.url
                    self.seen.stop(each.trouble, time.monotonic() + each.pause_s)
            self._draw()

    def _count_down(self) -> None:
        if self.seen.trouble is not None:
            self._draw()

    # What keys do

    def action_leave(self) -> None:
        """End it."""
        self.exit()

    def action_view(self, number: int) -> None:
        """Give the screen to something else."""
        self._view, self._help, self._scrolled = View(number), False, 0
        self._draw()

    def action_keys(self) -> None:
        """Show the help, or go back from it."""
        self._help, self._scrolled = not self._help, 0
        self._draw()

    def action_step_back(self) -> None:
        """Out of the help, the filter line, the filter, and the view, one at a time."""
        entry = self.query_one("#filter", Input)
        if self._help:
            self._help = False
        elif entry.display:
            self._close(entry)
        elif not self._listing.filter.empty:
            self._look_for(Filter())
        elif self._listing.chosen is not None:
            self._listing.chosen = None
        else:
            self._view = View.OVERVIEW
        self._draw()

    def action_hold(self) -> None:
        """Hold everything still, or go on."""
        if self._held is None and self.seen.now is not None:
            self._held = self.seen.held()
        else:
            self._held = None
        self._draw()

    def action_hurry(self) -> None:
        """Try to connect at once."""
        self._client.hurry()

    def action_details(self) -> None:
        """All of one decision, or less."""
        self._details = not self._with_details()
        self._draw()

    def action_filter(self) -> None:
        """Ask for a filter."""
        entry = self.query_one("#filter", Input)
        entry.value = str(self._listing.filter)
        entry.display = True
        self.set_focus(entry)  # at once: the next key is meant for it
        self._draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """A filter was entered."""
        try:
            wanted = parse_filter(event.value)
        except FilterError as error:
            self._said = str(error)
            self._draw()
            return
        self._close(event.input)
        self._look_for(wanted)

    def on_input_changed(self) -> None:
        """What was wrong may be right now."""
        if self._said:
            self._said = ""
            self._draw()

    def action_next_who(self) -> None:
        """Decisions of the next one who answered, and after the last of all again."""
        there = [] if self.seen.now is None else [each.name for each in self.seen.now.providers]
        names = [None, "local", "cache", *there, NOBODY]
        at = names.index(self._listing.filter.backend) if self._listing.filter.backend in names else 0
        self._look_for(replace(self._listing.filter, backend=names[(at + 1) % len(names)]))

    def action_move(self, by: int) -> None:
        """Another decision, or another part of a long view."""
        if self._help or self._view in (View.MODELS, View.PROVIDERS):
            self._scrolled = max(0, self._scrolled + by)
        else:
            self._listing.move(by, self._listing.rows(self.seen, self._held))
        self._draw()

    def action_page(self, by: int) -> None:
        """A screenful on."""
        pane = "#board" if self._help or self._view in (View.MODELS, View.PROVIDERS) else "#list"
        self.action_move(by * max(1, self.query_one(pane).size.height - 1))

    def _close(self, entry: Input) -> None:
        entry.display = False
        self._said = ""
        self.set_focus(None)

    def _look_for(self, wanted: Filter) -> None:
        """Filter what is here at once; the node, which remembers more, is asked too."""
        self._listing.look_for(wanted, self.seen)
        self._said = ""
        self._search()
        self._draw()

    def _search(self) -> None:
        if not self._listing.filter.empty and self.seen.live:
            self.run_worker(self._ask(self._listing.filter), name="search", group="search", exclusive=True)

    async def _ask(self, wanted: Filter) -> None:
        try:
            answer = await self._client.search(wanted)
        except CannotRead as error:
            self._said = error.trouble.said
        else:
            self._listing.answer(answer)
        self._draw()

    # What is drawn

    def _with_details(self) -> bool:
        return self.size.height >= _ROOM_FOR_DETAILS if self._details is None else self._details

    def _draw(self) -> None:
        """Everything, as it stands; only lines that have changed reach the terminal."""
        width, height = self.size
        if not self.is_running or not width:
            return
        if width < board.LEAST_WIDTH or height < board.LEAST_HEIGHT:
            self._lay(heading=board.too_small(width, height))
            return
        glyphs, seen = self._glyphs, self._held or self.seen
        waits_s = None if self.seen.retry_at_s is None else self.seen.retry_at_s - time.monotonic()
        top = [board.heading(self.seen, width, glyphs, held=self._held, waits_s=waits_s)]
        foot = [fitted(said((self._said, "bold red") if self._said else (_FOOT, "dim")), width, glyphs)]
        no_figures = self.seen.trouble is not None and self.seen.trouble.kind in (Kind.LOCKED, Kind.VERSION)
        if self._help:
            self._lay(heading=top, board=board.keys(width, glyphs), foot=foot)
        elif seen.now is None or no_figures:
            self._lay(heading=top, board=board.message(self.seen, width, glyphs), foot=foot)
        else:
            notices = board.notices(self.seen, width, held=self._held)
            lines = board.board(seen, seen.now, self._view, width, height, glyphs)
            if self.seen.trouble is not None:
                for each in lines:
                    each.stylize("dim")
            if self._view in (View.MODELS, View.PROVIDERS):
                self._lay(heading=top, notices=notices, board=lines, foot=foot)
            else:
                self._lay_list(top, notices, lines, foot, width)

    def _lay_list(self, top: list[Text], notices: list[Text], lines: list[Text], foot: list[Text], width: int) -> None:
        """The decisions below everything else, which leaves them some lines at least."""
        glyphs, listing, there = self._glyphs, self._listing, columns(width)
        rows = listing.rows(self.seen, self._held)
        at = listing.at(rows)
        more = details(rows[at], width, glyphs) if rows and self._with_details() else []
        if more:
            more = [title("This one", rows[at].request_id[-8:], width, glyphs), *more]
        most = max(0, self.size.height - 2 - len(notices) - len(more) - _LEAST_LIST)
        if len(lines) > most:
            hidden = said((f"{glyphs.more} {len(lines) - most + 1} lines more: keys 2 and 3", "dim"))
            lines = [*lines[: most - 1], hidden] if most else []
        empty = "No request has ended yet." if self._listing.filter.empty else "No request is like that."
        room = self.size.height - 2 - len(notices) - len(lines) - 2 - len(more) - self.query_one("#filter").display
        room = max(1, room)
        first = listing.first(rows, room)
        listed = [as_line(each, there, glyphs) for each in rows[first : first + room]]
        note = listing.note(rows, self.seen, self._held)
        self._lay(
            heading=top,
            notices=notices,
            board=lines,
            **{"list-head": [title("Decisions", note, width, glyphs), head(there, glyphs)]},
            list=listed or [said((empty, "dim"))],
            details=more,
            foot=foot,
            cursor=at - first if rows else None,
        )

    def _lay(self, *, cursor: int | None = None, **panes: list[Text]) -> None:
        """Give every pane its lines and its height. What is not named has neither."""
        for pane in self.query(Pane):
            lines = panes.get(pane.id or "", [])
            grows = pane.id == ("list" if "list" in panes else "board")
            pane.display = bool(lines) or grows
            pane.styles.height = "1fr" if grows else len(lines)
            if pane.id == "list":
                pane.show(lines, cursor=cursor)
            elif pane.id == "board" and grows:
                self._scrolled = min(self._scrolled, max(0, len(lines) - max(1, pane.size.height)))
                pane.show(lines, first=self._scrolled)
            else:
                pane.show(lines)
