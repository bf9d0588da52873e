"""``metallic pull``: download a model."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import Error, RequestError
from .console import console
from .failures import CommandError, ExitCode
from .progress import download_progress

__all__ = ["pull"]


def pull(
    *,
    repo: Annotated[
        str,
        typer.Argument(metavar="REPO[:QUANT]", help="owner/name[:QUANT], hf://owner/name/file.gguf or its address."),
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit [default: main].")] = None,
    filename: Annotated[str | None, typer.Option("--file", metavar="NAME", help="The file to take.")] = None,
    token: Annotated[
        str | None, typer.Option(envvar="HF_TOKEN", show_envvar=True, help="Token for private repositories.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Download a model from the Hugging Face hub into its local cache, and print its path.

    An interrupted download goes on where it stopped; what has arrived is verified by its SHA-256.
    """
    from ..loading.hub import pull as download
    from ..loading.resolve import HubReference

    reference = HubReference.parse(repo)
    if reference is None:
        raise typer.BadParameter(f"{repo!r} is no repository: write owner/name[:QUANT]", param_hint="REPO")
    with download_progress(quiet) as progress:
        try:
            path = download(
                reference.repo,
                reference.quantisation,
                filename=filename or reference.filename,
                revision=revision or reference.revision,
                progress=progress,
                token=token,
            )
        except RequestError as error:
            raise CommandError(str(error), ExitCode.MODEL) from error
        except Error as error:
            raise CommandError(str(error), ExitCode.FAILURE) from error
    console.line(str(path))
