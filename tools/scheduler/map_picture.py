"""A picture of a layout: regions as fields, devices coloured by stage, pipelines as lines, slow links marked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch

from tools.atomic_files import atomic_files
from tools.scenario_files import Scenario

FIELD = 2.0  # width of a region's field, in units of the axes
LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
SLOW_SHARE = 0.5  # boundaries slower than this share of the fastest link between hosts are marked


def draw_map(path: Path, scenario: Scenario, layout: np.ndarray, title: str) -> None:
    """Draw the layout, int [stages, replicas, tensor], as a PNG, whole or not at all."""
    places = _places(scenario)
    positions = _positions(places)
    figure = Figure(figsize=(11, 9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_fields(axes, places, positions)
    slowest = _draw_pipelines(axes, scenario, layout, positions)
    _draw_devices(axes, layout, positions)
    _draw_legend(axes, layout, slowest)
    axes.set_title(f"{scenario.title or scenario.name}\n{title}", fontsize=12)
    axes.set_aspect("equal")
    axes.axis("off")
    with atomic_files(path) as [temporary]:
        figure.savefig(temporary, format="png", dpi=110)


def _places(scenario: Scenario) -> dict[str, list[int]]:
    """Devices by region, or by host where all are in one region."""
    several = len({host.region for host in scenario.hosts}) > 1
    places: dict[str, list[int]] = {}
    for device, host in enumerate(scenario.host_of_device.tolist()):
        places.setdefault(scenario.hosts[host].region if several else f"host {host}", []).append(device)
    return places


def _positions(places: dict[str, list[int]]) -> np.ndarray:
    """[devices, 2]: places on a circle, the devices of one on a grid within."""
    count = len(places)
    radius = 0.0 if count == 1 else FIELD * 0.85 / np.sin(np.pi / max(count, 2))
    positions = np.zeros((sum(map(len, places.values())), 2))
    for number, devices in enumerate(places.values()):
        angle = np.pi / 2 - 2 * np.pi * number / count
        side = _columns(len(devices))
        for place, device in enumerate(devices):
            cell = np.array([place % side, -(place // side)]) - np.array([side - 1, 1 - side]) / 2
            positions[device] = radius * np.array([np.cos(angle), np.sin(angle)]) + cell * FIELD * 0.8 / side
    return positions


def _columns(count: int) -> int:
    """Of a grid of so many devices: full rows where that is not too wide."""
    least = int(np.ceil(np.sqrt(count)))
    return next((columns for columns in range(least, 2 * least + 1) if count % columns == 0), least)


def _draw_fields(axes: Axes, places: dict[str, list[int]], positions: np.ndarray) -> None:
    for name, devices in places.items():
        low, high = positions[devices].min(axis=0) - 0.22, positions[devices].max(axis=0) + 0.22
        style = "round,pad=0.06"
        axes.add_patch(FancyBboxPatch(low, *(high - low), boxstyle=style, color="#eceff4", zorder=0))
        axes.text(
            (low[0] + high[0]) / 2, high[1] + 0.12, name, ha="center", va="bottom", fontsize=11, zorder=5, bbox=LABEL
        )


def _draw_pipelines(axes: Axes, scenario: Scenario, layout: np.ndarray, positions: np.ndarray) -> str:
    """Every pipeline's first tensor rank as a line, slow boundaries thick and red; what the slowest is, in words."""
    host = scenario.host_of_device
    elsewhere = ~np.eye(len(scenario.hosts), dtype=bool)
    fastest = scenario.bandwidth[elsewhere].max() if elsewhere.any() else np.inf
    slowest, words = np.inf, "no pipeline leaves a host"
    for pipeline in layout[:, :, 0].T:
        for a, b in zip(pipeline[:-1], pipeline[1:], strict=True):
            here, there = host[a], host[b]
            rate = min(scenario.bandwidth[here, there], scenario.bandwidth[there, here])
            slow = here != there and rate < SLOW_SHARE * fastest
            style = (
                {"color": "#bf2130", "lw": 2.2, "zorder": 2} if slow else {"color": "#6b7a90", "lw": 0.9, "zorder": 1}
            )
            axes.plot(*positions[[a, b]].T, alpha=0.75, **style)
            if here != there and rate < slowest:
                slowest = rate
                words = f"slowest boundary: {rate / 1e9:g} Gbit/s, {scenario.delay[here, there] * 1e3:g} ms"
    return words


def _draw_devices(axes: Axes, layout: np.ndarray, positions: np.ndarray) -> None:
    colours = colormaps["viridis"](np.linspace(0, 0.95, len(layout)))
    for stage, devices in enumerate(layout):
        places = positions[devices.ravel()]
        axes.scatter(*places.T, s=90, color=colours[stage], edgecolors="white", linewidths=0.7, zorder=3)
        text = "white" if stage < 0.6 * len(layout) else "black"
        for x, y in places:
            axes.text(x, y, str(stage), color=text, ha="center", va="center", fontsize=6, zorder=4)


def _draw_legend(axes: Axes, layout: np.ndarray, slowest: str) -> None:
    handles = [
        Line2D(
            [], [], marker="o", ls="", color="#31688e", label=f"device; its number is the stage, 0 to {len(layout) - 1}"
        ),
        Line2D([], [], color="#6b7a90", lw=0.9, label="pipeline"),
        Line2D([], [], color="#bf2130", lw=2.2, label="pipeline over a slow link (under half the fastest)"),
        Line2D([], [], ls="", label=slowest),
    ]
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False, fontsize=10)
