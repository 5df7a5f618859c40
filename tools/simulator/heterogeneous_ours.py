"""The two systems that were never published: Megatron in its own order with SDP4Bit, and the schedule made here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tools.scheduler.layouts import megatron_layout
from tools.scheduler.nodes import node_of_device
from tools.scheduler.plan import Choices, Plan, best_plan
from tools.simulator.heterogeneous_constants import Constants
from tools.simulator.heterogeneous_rows import Row
from tools.simulator.heterogeneous_runs import read_run
from tools.simulator.heterogeneous_training import Device, Scheme, Trainer
from tools.simulator.heterogeneous_work import published_work

SWAPS = 0  # the layouts along a published network's own regions are not improved by swaps worth their time


@dataclass(frozen=True)
class Setting:
    """What a published table varies: the network, the model and the batch."""

    scenario: str
    model: str
    layers: str
    batch: int


def settings_of(rows: Iterable[Row]) -> list[Setting]:
    """Every setting of the rows once, in their order."""
    return list(dict.fromkeys(Setting(row.scenario, row.model, row.layers, row.batch) for row in rows))


def trainer_of(setting: Setting, constants: Constants) -> Trainer:
    """This project's trainer on the published network and devices, with the published work."""
    run = read_run(setting.scenario, published_work(setting.model, setting.layers, setting.batch), None, constants)
    device = Device(constants.teraflops_of(run.settings["device"]), run.settings["memory-gb"] * 1e9)
    return Trainer(run.network, run.work, device, node_of_device(run.scenario))


def megatron_sdp4bit(setting: Setting, constants: Constants) -> Plan:
    """Pipelines of eight stages in Megatron's order and the published micro-batch, replicas synced by SDP4Bit."""
    trainer = trainer_of(setting, constants)
    run = read_run(setting.scenario, trainer.work, None, constants)
    layout = megatron_layout(trainer.network.num_devices, run.stages)
    scheme, micro_batch = Scheme("sdp4bit"), run.settings["megatron-micro-batch"]
    seconds = trainer.pipeline_time(layout, micro_batch), trainer.sync_time(layout, scheme)
    return Plan(layout, micro_batch, scheme, *seconds)


def ours(setting: Setting, constants: Constants) -> Plan:
    """Degrees, layout, micro-batch and scheme by simulated time."""
    return best_plan(trainer_of(setting, constants), Choices(), swaps=SWAPS)


NEW_SYSTEMS: dict[str, Callable[[Setting, Constants], Plan]] = {"megatron_sdp4bit": megatron_sdp4bit, "ours": ours}
