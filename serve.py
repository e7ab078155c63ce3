"""Serves a model to any client that speaks OpenAI's chat API: SillyTavern, Open WebUI, the openai client, curl.

    python serve.py --model_path model_weights/MMRole-Agent
    python serve.py --model_path model_weights/MMRole-Agent --role "Iron Man"
    python serve.py --model_path model_weights/MMRole-Agent --data_root .    # each character is a model: mmrole/NAME

At http://127.0.0.1:8000/v1, for this machine only. Needs FastAPI and uvicorn: pip install -e '.[serve]'. Ctrl-C or
SIGTERM finishes what runs, then ends; the second one ends at once.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys

try:
    from mmrole.backends.backend import ProcessPlace
    from mmrole.backends.options import (
        BackendOptions,
        add_generation_arguments,
        add_model_arguments,
        find_backend,
    )
    from mmrole.base.errors import UserError, run
    from mmrole.chat.server.options import ServerOptions, add_server_arguments
    from mmrole.chat.server.served_models import ServedModels
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed; run: pip install -e . (or bash scripts/setup.sh)", file=sys.stderr)
    sys.exit(2)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser, model_path="model_weights/MMRole-Agent")
    add_generation_arguments(parser)
    add_server_arguments(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    flags = vars(parse_arguments(argv))
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{' and '.join(missing)}: not installed; run: pip install -e '.[serve]'")
    options = ServerOptions.of_flags(flags)
    answering = BackendOptions.of_flags(flags)
    path = answering.replies or answering.model.model_path
    models = ServedModels.of_options(path.resolve().name, options)
    backend = find_backend(answering, place=ProcessPlace(progress=sys.stderr.isatty()), resampling=True)
    from mmrole.chat.server.serving import run_server

    run_server(backend, models, options)
    return 0


if __name__ == "__main__":
    run(main)
