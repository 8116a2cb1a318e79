"""`sconce serve`: a model behind an HTTP API."""

from typing import Annotated

import typer

from sconce_cli.options import BackendOption, Dtype, DtypeOption, Hardware, ModelArgument


def serve(
    checkpoint: ModelArgument,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; the default is this machine alone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="SCONCE_API_KEY", help="Clients must send it. Default: none.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="Answer under this host name too. Default: local names only, or with another --host any.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The model's name. Default: the run's folder.")] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Prompts decoded at once.")] = 16,
    queue: Annotated[int, typer.Option("--queue", min=0, help="Prompts that may wait; more are refused.")] = 64,
    max_request_bytes: Annotated[int, typer.Option("--max-request-bytes", min=1)] = 2**20,
    dtype: DtypeOption = Dtype.fp32,
    backend: BackendOption = Hardware.auto,
) -> None:
    """Serve a trained checkpoint: an OpenAI-compatible API, and a playground at /."""
    from importlib.util import find_spec

    from sconce.errors import ConfigError, SconceError

    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise SconceError("sconce serve needs starlette and uvicorn: pip install 'sconce-lm[serve]'")
    from sconce.attention import check_decoding
    from sconce.generation.model import load_model
    from sconce.serving.app import LOCAL_HOSTS, ServerOptions
    from sconce.serving.server import LOOPBACK, open_socket
    from sconce.serving.server import serve as run

    if api_key == "":
        raise ConfigError("--api-key: found an empty text, expected a key; without the option everyone is let in")
    check_decoding()
    listening = open_socket(host, port)
    model, device = load_model(checkpoint, hardware=backend.value, precision=dtype.value)
    options = ServerOptions(
        name=name or checkpoint.resolve().name,
        rows=concurrency,
        queue=queue,
        max_request_bytes=max_request_bytes,
        api_key=api_key,
        hosts=(*LOCAL_HOSTS, host, *(allow_host or ())) if host in LOOPBACK or allow_host else ("*",),
    )
    where = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"

    def started() -> None:
        place = f"{device.kind} through {device.backend}, {dtype.value}"
        typer.echo(f"{model.path.name}: {model.spec.num_params:,} parameters, {place}", err=True)
        if host not in LOOPBACK and api_key is None:
            typer.echo("warning: no --api-key, so whoever reaches this address can use the model", err=True)
        typer.echo(f"serving {options.name} at {where}/v1, playground at {where}/ (Ctrl-C stops)", err=True)

    run(model, options, listening, started)
