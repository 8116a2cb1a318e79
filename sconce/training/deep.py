"""`sconce checkpoint verify --deep`: reproduce a stored checkpoint's certificate."""

from dataclasses import replace
from pathlib import Path

from sconce.backend import Hardware, load_backend
from sconce.checkpoint.load import LoadedCheckpoint, load_folder
from sconce.config import config_from, micro_batch_size, model_spec, sequence_length
from sconce.data.order import make_order
from sconce.data.rows import open_train_rows
from sconce.errors import DataError
from sconce.optim import OptimSpec
from sconce.tokenizer.bpe import load_tokenizer
from sconce.training.certificate import Witness, check_certificate
from sconce.training.recipe import make_compute, mixture_stages
from sconce.training.show import shards_there
from sconce.training.tokens import shards_folder


def verify_deep(folder: Path, hardware: Hardware) -> str:
    """Load the model of the checkpoint in `folder` and let it meet its certificate; what was found, for people.

    The checkpoint must stand in its run's folder, whose token shards it needs: DataError when they are not there.
    Raises CheckpointError when the certificate fails.
    """
    loaded = load_folder(folder, verify=False)
    if loaded.record.certificate is None:
        return "none in this checkpoint (it was imported)"
    return check_certificate(_witness(loaded, hardware), loaded)


def _witness(loaded: LoadedCheckpoint, hardware: Hardware) -> Witness:
    config = config_from(loaded.run_config, str(loaded.path / "run.json"))
    tokenizer = load_tokenizer(loaded.path / "tokenizer.json")
    place = shards_folder(config, loaded.path.resolve().parent.parent, tokenizer)
    tokens = shards_there(place, tokenizer, loaded)
    if tokens is None:
        raise DataError(f"{place}: not the token shards of this checkpoint's run, which its certificate is about")
    backend = load_backend(hardware)
    spec = model_spec(config, tokenizer.vocab_size)
    stages = mixture_stages(config)
    rows = open_train_rows(tokens, sequence_length(config), config.data.packing, bool(stages))
    compute = replace(make_compute(config, spec), compile=False)
    return Witness(
        learner=backend.learner(spec, OptimSpec(), compute, loaded.weights),
        device=backend.device(),
        precision=compute.precision,
        rows=rows,
        order=make_order(rows.sizes, stages, config.data.batch_size, config.runtime.seed),
        micro_batch_size=micro_batch_size(config),
    )
