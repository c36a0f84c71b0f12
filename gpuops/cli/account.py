"""`gpuops offers`, `doctor`, `uninstall`: what the account can have, whether all is well, and how to leave."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from gpuops import cost
from gpuops.cli import options, screen
from gpuops.cli.options import resolve
from gpuops.errors import ProviderError
from gpuops.machine import FORMAT

if TYPE_CHECKING:
    from gpuops.machine import Finding, GpuType
    from gpuops.workflow import Leaving


@click.command()
@click.option("--type", "types", multiple=True, help="Only this type.")
@options.where
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def offers(as_json: bool, **flags: object) -> None:
    """List the machine types with a GPU, their prices and zones."""
    from dataclasses import asdict

    from gpuops import workflow

    settings = resolve(**flags)
    found = workflow.offers(settings)
    if as_json:
        screen.say(json.dumps({"format": FORMAT, "offers": [asdict(each) for each in found]}, indent=1))
        return
    screen.say(_offers_text(found) if found else f"{settings.region} has no machine types with a GPU.")


@click.command()
@options.where
@click.option("--policy", is_flag=True, help="Only print the smallest set of permissions that suffices.")
def doctor(policy: bool, **flags: object) -> None:
    """Check credentials, permissions, quota, image, ssh, rsync, ports and clock, each with its mend."""
    from gpuops import workflow

    settings = resolve(**flags)
    if policy:
        screen.say(workflow.policy(settings))
        return

    def show(finding: Finding) -> None:
        mend = "" if finding.is_well or not finding.mend else f"\n      {finding.mend}"
        screen.say(f"  {'✓' if finding.is_well else '✗'} {finding.name}: {finding.found}{mend}")

    ill = [finding.name for finding in workflow.doctor(settings, show=show) if not finding.is_well]
    if "permissions" in ill:
        screen.say(f"The smallest policy that suffices:\n{workflow.policy(settings)}")
    if ill:
        raise ProviderError(
            f"Not well: {', '.join(ill)}.",
            left_behind="Nothing was changed.",
            next_step="Mend these, each as it says above. The permissions that suffice: gpuops doctor --policy",
        )
    screen.say("All is well. The permissions that suffice, for a user of its own: gpuops doctor --policy")


@click.command()
@options.where
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
def uninstall(yes: bool, **flags: object) -> None:
    """Delete what gpuops made at the provider and on this computer; results stay."""
    from gpuops import workflow

    def confirm(leaving: Leaving) -> None:
        progress.pause()
        going = [("deletes", str(path)) for path in leaving.gone]
        rows = [*going, ("deletes", "the firewall (security group) gpuops, in every region")]
        rows.append(("changes", f"{leaving.ssh_config}: our Include line goes"))
        if leaving.results:
            rows.append(("keeps", f"{leaving.results}: results"))
        screen.rows(rows, err=True)
        screen.ask("Delete these?", yes=yes)

    with screen.Progress() as progress:
        swept = workflow.uninstall(resolve(**flags), confirm=confirm, tell=progress.tell)
    for gone in swept:
        screen.say(f"Deleted {gone}.")
    screen.say("Done. The program itself goes with: pip uninstall gpuops")


def _offers_text(found: list[GpuType]) -> str:
    rows = [("TYPE", "GPU", "GPU MEMORY", "VCPUS", "MEMORY", "PRICE", "SPOT", "ZONES")]
    rows += [
        (
            each.name,
            f"{each.gpus} × {each.gpu}" if each.gpus > 1 else each.gpu,
            f"{each.gpu_memory_gb} GB",
            str(each.vcpus),
            f"{each.memory_gb:g} GB",
            _price(each.price_usd_per_hour),
            _price(each.spot_usd_per_hour),
            ", ".join(zone.removeprefix(each.region) for zone in each.zones),
        )
        for each in found
    ]
    noted = _by([(each.note, each.name) for each in found if each.note])
    sources = _by([(each.price_from, each.name) for each in found if each.price_from])
    footer = [f"{', '.join(names)}: {note}." for note, names in noted.items()]
    if len(sources) == 1:
        footer.append(f"Prices: {next(iter(sources))}.")
    else:
        footer += [f"Prices of {', '.join(names)}: {source}." for source, names in sources.items()]
    return "\n".join([screen.columns(rows), *footer, f"Zones: of {found[0].region}."])


def _by(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, name in pairs:
        groups.setdefault(key, []).append(name)
    return groups


def _price(price_usd_per_hour: float | None) -> str:
    return "unknown" if price_usd_per_hour is None else cost.rate(price_usd_per_hour)
