"""How responsive the panel is, in the host of Testing/panel: construction, first progress, longest block of a run.

    python Testing/benchmark/panel.py [--size 192 192 144] [--targets FLAIR T2] [--runs 3]

Blocks are given as wall time and as processor time of the main thread; on a busy machine the first one also counts the
time in which other programs had the processor.
"""

import argparse
import os
import platform
import sys
import time
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
TESTING = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTING / "panel"), str(TESTING / "Python")]

from host import application  # noqa: E402
from panel_story import Panel, add_head  # noqa: E402


class Watch:
    """Processes events, and remembers the longest that the main thread was busy without a pause."""

    def __init__(self, app):
        self._app = app
        self.wall = self.processor = 0.0

    def step(self, call=None):
        wall, processor = time.perf_counter(), time.thread_time()
        (call or self._app.processEvents)()
        self.wall = max(self.wall, time.perf_counter() - wall)
        self.processor = max(self.processor, time.thread_time() - processor)
        time.sleep(0.001)


def run(panel, app):
    """One run by a click: seconds to the first progress, watch during the run, watch when its results came, seconds."""
    session = panel.logic.session
    during, ending = Watch(app), Watch(app)
    started = time.perf_counter()
    during.step(panel.ui.applyButton.click)
    first = None
    while session.running:
        during.step()
        if first is None and session.progress is not None and session.progress.stage:
            first = time.perf_counter() - started
    seconds = time.perf_counter() - started
    for _ in range(50):
        ending.step()
    if session.error is not None:
        raise SystemExit(str(session.error))
    return first, during, ending, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=(192, 192, 144))
    parser.add_argument("--targets", nargs="+", default=["FLAIR"])
    parser.add_argument("--runs", type=int, default=3)
    chosen = parser.parse_args()
    app = application.install()
    started = time.perf_counter()
    module = application.load_module()
    imported = time.perf_counter()
    widget = application.open_widget(module)
    opened = time.perf_counter()
    widget.enter()
    panel = Panel(widget)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| panel | s |\n| --- | --- |")
    print(f"| import of the module | {imported - started:.3f} |")
    print(f"| construction | {opened - imported:.3f} |\n")

    add_head(size=chosen.size)
    panel.ui.compareWhenDoneCheckBox.checked = False
    panel.tick(*chosen.targets)
    panel.wait(lambda: panel.logic.session.client.state == "idle", "a warm worker")
    size = "x".join(str(n) for n in chosen.size)
    print(f"{size}, T1 to {', '.join(chosen.targets)}, warm worker\n")
    print("| run | s to first progress | s in all | longest block: wall ms | processor ms | after it: wall ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for number in range(chosen.runs):
        first, during, ending, seconds = run(panel, app)
        blocks = f"{1000 * during.wall:.0f} | {1000 * during.processor:.0f} | {1000 * ending.wall:.0f}"
        print(f"| {number + 1} | {first:.2f} | {seconds:.1f} | {blocks} |", flush=True)
    application.close(widget)


if __name__ == "__main__":
    main()
