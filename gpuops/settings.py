"""Every setting, resolved once into one frozen value: flags > environment > gpuops.toml > defaults."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpuops.errors import BadName, BadSetting
from gpuops.machine import MAX_HOURS, Wish, is_valid_login, is_valid_name

CONFIG_FILE = "gpuops.toml"

_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_DISK_TYPE = re.compile(r"[a-z][a-z0-9]{1,7}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a command works with. A field is set by ``--flag``, ``GPUOPS_FIELD``, or ``field = …`` in gpuops.toml.

    `home` holds everything gpuops keeps on this computer; `ssh_config` is the person's own ssh config; `region`
    falls back to AWS_REGION and AWS_DEFAULT_REGION, as in the AWS tools; `types` are tried in order (empty: the
    provider's choice); `image`, `user` (its login), `vpc`, `subnet`, `disk_type` replace what the provider would take.
    `max_hours` is the machine's own deadline, counted from its boot (None: as it has it, and 12 for a new one);
    `max_usd_per_hour` is the most that a machine
    may cost, `max_usd` the most that a run may. `admit` is the one address block that may reach ssh, or a URL that
    answers with this computer's address ("auto" asks AWS); `authorized_keys` are public keys of other computers that
    a new machine admits; `identity_file` is the key of this computer's that machines know it by, if not gpuops's own.
    `ssh_port` is where the image's sshd listens; `grace_minutes` is how long after its job's end a machine that nobody
    fetched from stops by itself. With `no_ssh_config` the person's ssh config stays as it is, and
    ``ssh -F ~/.ssh/gpuops.config NAME`` is the way in.
    """

    name: str = "fast-ai"
    provider: str = "aws"
    region: str = "us-west-2"
    types: tuple[str, ...] = ()
    image: str = ""
    user: str = "ubuntu"
    vpc: str = ""
    subnet: str = ""
    disk_gb: int = 100
    disk_type: str = "gp3"
    max_hours: float | None = None
    max_usd_per_hour: float | None = None
    max_usd: float | None = None
    admit: str = "auto"
    authorized_keys: tuple[str, ...] = ()
    identity_file: Path | None = None
    ssh_port: int = 22
    grace_minutes: float = 10.0
    home: Path = field(default_factory=lambda: _default_home())
    ssh_config: Path = field(default_factory=lambda: Path.home() / ".ssh" / "config")
    no_ssh_config: bool = False

    def __post_init__(self) -> None:
        if not is_valid_name(self.name):
            raise BadName(
                f"{self.name!r} can't be a machine's name: lower-case letters, digits and hyphens only, 63 at most, "
                "starting and ending with a letter or digit; not localhost, and not ending in -jupyter.",
                next_step="For example: gpuops up fast-ai",
            )
        if self.max_hours is not None and not 0 < self.max_hours <= 24 * 30:
            raise BadSetting(f"max_hours is {self.max_hours:g}; it must be more than 0 and at most 720 hours.")
        for name in ("max_usd_per_hour", "max_usd"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < float("inf"):
                raise BadSetting(f"{name} is {limit:g}; it must be more than 0.")
        if not _DISK_TYPE.fullmatch(self.disk_type):
            raise BadSetting(f"disk_type is {self.disk_type!r}; gp3 and gp2 are disk types.")
        if not is_valid_login(self.user):
            raise BadSetting(f"user is {self.user!r}, which is no login name.", next_step="For example: ubuntu")
        _refuse_what_is_no_key(self.authorized_keys)
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
            image=self.image,
            user=self.user,
            vpc=self.vpc,
            subnet=self.subnet,
            disk_gb=self.disk_gb,
            disk_type=self.disk_type,
            max_hours=MAX_HOURS if self.max_hours is None else self.max_hours,
            max_usd_per_hour=self.max_usd_per_hour,
            admit=self.admit,
            authorized_keys=self.authorized_keys,
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


def _refuse_what_is_no_key(authorized_keys: tuple[str, ...]) -> None:
    if not authorized_keys:
        return
    from gpuops import host_keys  # slow to import

    for key in authorized_keys:
        if not host_keys.is_key(key) or "\n" in key:
            raise BadSetting(
                f"authorized_keys has {key[:60]!r}, which is no public key.",
                next_step="A line like those in ~/.ssh/id_ed25519.pub: ssh-ed25519 AAAA…",
            )


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
        if key in {"types", "authorized_keys"}:
            items = value.split(",") if isinstance(value, str) else list(value)  # type: ignore[call-overload]
            return tuple(str(item).strip() for item in items if str(item).strip())
        if key in {"home", "ssh_config", "identity_file"}:
            return Path(str(value)).expanduser().absolute()
        if key in {"disk_gb", "ssh_port"}:
            return int(str(value))
        if key in {"max_hours", "max_usd_per_hour", "max_usd", "grace_minutes"}:
            return float(str(value))
        if key == "no_ssh_config":
            return _TRUTHS[str(value).lower()]
    except (TypeError, ValueError, KeyError) as error:
        raise BadSetting(f"{where} is {value!r}, which is not a value for {key}.") from error
    return str(value)


def _default_home() -> Path:
    import platformdirs

    return platformdirs.user_data_path("gpuops")
