"""A timeline as a picture (SVG): a row for each device, and along it what the device does. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from asyncdiff.plan.schedule import StepKind
from asyncdiff.plan.timeline import Activity, Span, Timeline

_COLOURS = {Activity.COMPUTING: "#3b7dd8", Activity.SENDING: "#e8a33d", Activity.WAITING: "#d9d9d9"}
_COLOURS_OF_STEPS = {
    StepKind.FULL: "#7a4fb5",
    StepKind.DIVIDED: "#4f62b5",
    StepKind.CHAINED: "#b54f8e",
    StepKind.ROUND: "#4fb587",
    StepKind.BRIDGED: "#b5d96b",
}
_WIDTH, _LEFT, _RIGHT = 1200, 90, 40  # of the picture, and of its margins
_TOP, _ENTRY = 62, 110  # height of title and legend; width of an entry of the legend
_ROW, _BAR, _SENT = 26, 16, 5  # heights: of a row, and in it of the bar and of what is sent
_PANEL = 70  # height of a panel beside its rows
_TICKS = 8
_STEPS_SHOWN = 5  # in the second panel
_LEAST = 0.3  # pixels; what is shorter is still to be seen


@dataclass(frozen=True)
class _Panel:
    """A stretch of time, and where it is drawn."""

    title: str
    begin: float
    end: float
    top: float

    def x(self, seconds: float) -> float:
        share = (seconds - self.begin) / max(self.end - self.begin, 1e-12)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def draw(found: Timeline, groups: int, title: str) -> str:
    """The whole generation, and enlarged the steps in which the warm-up ends, as the text of an SVG file.

    Args:
        found: the timeline of one group.
        groups: how many groups do the same.
        title: what stands above.
    """
    ranks = 1 + max((span.rank for span in found.spans), default=0)
    height = _PANEL + ranks * groups * _ROW
    whole = _Panel("the whole generation", 0.0, found.seconds, _TOP)
    panels = [whole, _enlarged(found, _TOP + height)]
    body = [_text(_LEFT, 24, title, "title"), *_legend(46, found.spans)]
    for panel in panels:
        body += _draw_panel(panel, found.spans, ranks, groups)
    total = _TOP + height * len(panels)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{total}">',
            "<style>text{font:12px sans-serif;fill:#333}.title{font-size:15px;font-weight:bold}</style>",
            f'<rect width="{_WIDTH}" height="{total}" fill="white"/>',
            *body,
            "</svg>",
            "",
        ]
    )


def _enlarged(found: Timeline, top: float) -> _Panel:
    """From the last step of the warm-up on, so many steps."""
    kinds = {span.step: span.kind for span in found.spans}
    after = next((step for step in sorted(kinds) if not kinds[step].is_full), 1)
    shown = range(after - 1, after - 1 + _STEPS_SHOWN)
    spans = [span for span in found.spans if span.step in shown]
    begin = min((span.begin for span in spans), default=0.0)
    end = max((span.end for span in spans), default=found.seconds)
    return _Panel(f"steps {shown.start} to {shown.stop - 1}", begin, end, top)


def _draw_panel(panel: _Panel, spans: Sequence[Span], ranks: int, groups: int) -> Iterable[str]:
    yield _text(_LEFT, panel.top + 14, panel.title)
    rows = panel.top + 34
    seen = [span for span in spans if span.begin < panel.end and span.end > panel.begin]
    for span in _steps(seen):
        if span.kind in _COLOURS_OF_STEPS:
            yield _bar(panel, span, rows - 12, 6, _COLOURS_OF_STEPS[span.kind], f"step {span.step}: {span.kind.value}")
    for row in range(ranks * groups):
        top = rows + row * _ROW
        yield _text(8, top + 12, f"device {row}")
        for span in seen:
            if span.rank == row % ranks:
                is_sent = span.activity is Activity.SENDING
                height, below = (_SENT, _BAR) if is_sent else (_BAR, 0)
                said = f"{span.activity.value}, step {span.step} ({span.kind.value}): {span.end - span.begin:.3g} s"
                yield _bar(panel, span, top + below, height, _COLOURS[span.activity], said)
    foot = rows + ranks * groups * _ROW + 14
    for tick in range(_TICKS + 1):
        seconds = panel.begin + (panel.end - panel.begin) * tick / _TICKS
        yield _text(panel.x(seconds) - 12, foot, f"{seconds:.3g} s")


def _steps(spans: Sequence[Span]) -> Iterable[Span]:
    """One span for each step, over all ranks."""
    for step in sorted({span.step for span in spans}):
        own = [span for span in spans if span.step == step]
        begin, end = min(span.begin for span in own), max(span.end for span in own)
        yield Span(0, begin, end, Activity.COMPUTING, step, own[0].kind)


def _legend(top: float, spans: Sequence[Span]) -> Iterable[str]:
    done, kinds = {span.activity for span in spans}, {span.kind for span in spans}
    entries = [(activity.value, colour) for activity, colour in _COLOURS.items() if activity in done]
    entries += [(f"{kind.value} step", colour) for kind, colour in _COLOURS_OF_STEPS.items() if kind in kinds]
    for number, (name, colour) in enumerate(entries):
        x = _LEFT + _ENTRY * number
        yield f'<rect x="{x}" y="{top - 10}" width="12" height="12" fill="{colour}"/>'
        yield _text(x + 16, top, name)


def _bar(panel: _Panel, span: Span, top: float, height: float, colour: str, said: str) -> str:
    left, right = panel.x(max(span.begin, panel.begin)), panel.x(min(span.end, panel.end))
    return (
        f'<rect x="{left:.2f}" y="{top:.1f}" width="{max(right - left, _LEAST):.2f}" height="{height}" '
        f'fill="{colour}"><title>{escape(said)}</title></rect>'
    )


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    styled = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{styled}>{escape(text)}</text>'
