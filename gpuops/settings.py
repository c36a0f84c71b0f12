"""Every setting, resolved once into one frozen value: flags > environment > gpuops.toml > defaults."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpuops.errors import BadName, BadSetting
from gpuops.machine import Wish, is_valid_name

CONFIG_FILE = "gpuops.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a command works with. A field is set by ``--flag``, ``GPUOPS_FIELD``, or ``field = …`` in gpuops.toml.

    `home` holds everything gpuops keeps on this computer; `ssh_config` is the person's own ssh config; `region`
    falls back to AWS_REGION and AWS_DEFAULT_REGION, as in the AWS tools; `types` are tried in order (empty: the
    provider's choice); `max_hours` is the machine's own deadline, counted from every boot; `admit` is the one address
    block that may reach ssh ("auto" asks for this computer's public address); `ssh_port` is where the image's sshd
    listens; `grace_minutes` is how long after its job's end a machine that nobody fetched from stops by itself.
    """

    name: str = "fast-ai"
    provider: str = "aws"
    region: str = "us-west-2"
    types: tuple[str, ...] = ()
    disk_gb: int = 100
    max_hours: float = 12.0
    admit: str = "auto"
    ssh_port: int = 22
    grace_minutes: float = 10.0
    home: Path = field(default_factory=lambda: _default_home())
    ssh_config: Path = field(default_factory=lambda: Path.home() / ".ssh" / "config")

    def __post_init__(self) -> None:
        if not is_valid_name(self.name):
            raise BadName(
                f"{self.name!r} can't be a machine's name: lower-case letters, digits and hyphens only, 63 at most, "
                "starting and ending with a letter or digit; not localhost, and not ending in -jupyter.",
                next_step="For example: gpuops up fast-ai",
            )
        if not 0 < self.max_hours <= 24 * 30:
            raise BadSetting(f"max_hours is {self.max_hours:g}; it must be more than 0 and at most 720 hours.")
        if not 1 <= self.disk_gb <= 16384:
            raise BadSetting(f"disk_gb is {self.disk_gb}; it must be between 1 and 16384 GB.")
        if not 0 <= self.grace_minutes <= 24 * 60:
            raise BadSetting(f"grace_minutes is {self.grace_minutes:g}; it must be between 0 and 1440.")
        if not 1 <= self.ssh_port <= 65535:
            raise BadSetting(f"ssh_port is {self.ssh_port}; a port is between 1 and 65535.")

    @property
    def keys(self) -> Path:
        """The folder of this computer's ssh key and the known host keys."""
        return self.home / "keys"

    def wish(self) -> Wish:
        return Wish(
            name=self.name,
            region=self.region,
            types=self.types,
            disk_gb=self.disk_gb,
            max_hours=self.max_hours,
            admit=self.admit,
            ssh_port=self.ssh_port,
        )


def resolve(flags: Mapping[str, object], *, environ: Mapping[str, str], folder: Path) -> Settings:
    """Settings from flags (None means: not given), ``GPUOPS_…`` in the environment and ``folder/gpuops.toml``.

    AWS's own variables for the region come last: they are a computer's habit, and a folder's file is more particular.

    Raises `BadSetting` for an unknown key (naming the closest) or a value of the wrong type, and says where it stands.
    """
    values: dict[str, object] = {}
    fields = {f.name for f in dataclasses.fields(Settings)}
    for fallback in ("AWS_DEFAULT_REGION", "AWS_REGION"):
        if environ.get(fallback):
            values["region"] = environ[fallback]
    path = folder / CONFIG_FILE
    if path.exists() or path.is_symlink():
        values |= {key: _typed(key, value, path.name) for key, value in _read(path, fields).items()}
    for key in fields:
        variable = f"GPUOPS_{key.upper()}"
        if environ.get(variable):
            values[key] = _typed(key, environ[variable], variable)
    values |= {key: _typed(key, value, f"--{key}") for key, value in flags.items() if value is not None}
    return Settings(**values)  # type: ignore[arg-type]  # every value was brought to its field's type by _typed


def _read(path: Path, fields: set[str]) -> dict[str, object]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        table: dict[str, object] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise BadSetting(f"{path.name} can't be read: {error}") from error
    for key in table.keys() - fields:
        closest = difflib.get_close_matches(key, fields, n=1)
        raise BadSetting(
            f"{path.name} has an unknown key {key!r}." + (f" Did you mean {closest[0]!r}?" if closest else ""),
            next_step=f"Known keys: {', '.join(sorted(fields))}.",
        )
    return table


def _typed(key: str, value: object, where: str) -> object:
    """`value` as its field's type; a string from the environment is parsed, anything else must fit as it stands."""
    try:
        if key == "types":
            items = value.split(",") if isinstance(value, str) else list(value)  # type: ignore[call-overload]
            return tuple(str(item).strip() for item in items if str(item).strip())
        if key in {"home", "ssh_config"}:
            return Path(str(value)).expanduser().absolute()
        if key in {"disk_gb", "ssh_port"}:
            return int(str(value))
        if key in {"max_hours", "grace_minutes"}:
            return float(str(value))
    except (TypeError, ValueError) as error:
        raise BadSetting(f"{where} is {value!r}, which is not a value for {key}.") from error
    return str(value)


def _default_home() -> Path:
    import platformdirs

    return platformdirs.user_data_path("gpuops")
