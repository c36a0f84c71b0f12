"""templates/ → text. A missing variable is an error, and nothing is escaped or trimmed behind one's back."""

from __future__ import annotations

from pathlib import Path

import jinja2


def render(template: str, **values: object) -> str:
    """The named template with these values. Raises `jinja2.UndefinedError` for a value that is not given."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_folder()),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # the templates are cloud-config, ssh config and shell
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def _folder() -> Path:
    """gpuops/templates in an installed wheel; the checkout's templates/ beside the package otherwise."""
    package = Path(__file__).parent
    installed = package / "templates"
    return installed if installed.is_dir() else package.parent / "templates"
