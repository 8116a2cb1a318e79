"""`sconce checkpoint verify --deep`: reproduce stored checkpoints' certificates."""

from dataclasses import dataclass, replace
from pathlib import Path

from sconce.backend import Hardware, load_backend
from sconce.checkpoint.load import LoadedCheckpoint, load_folder
from sconce.config import RunConfig, config_from_resolved, micro_batch_at, model_spec
from sconce.data.order import Order
from sconce.data.rows import NumberedRows
from sconce.data.shards import TokenData, open_tokens
from sconce.optim import OptimSpec
from sconce.tokenizer.bpe import Tokenizer, load_tokenizer
from sconce.training.certificate import Witness, check_certificate
from sconce.training.data import rows_and_order, stored_data
from sconce.training.recipe import make_compute
from sconce.training.tokens import Say


@dataclass(frozen=True, slots=True)
class DeepResult:
    """What was found, for people. `compared` is False when a checkpoint of ours has no certificate to reproduce."""

    found: str
    compared: bool


class DeepVerifier:
    """Lets models meet their certificates: one backend, and each folder of token shards hashed once, for all."""

    def __init__(self, hardware: Hardware, say: Say | None = None) -> None:
        """`say` hears of a packing plan that is made again. Raises BackendError when the backend is not here."""
        self._backend, self._say = load_backend(hardware), say
        self._verified: set[Path] = set()

    def check(self, folder: Path) -> DeepResult:
        """Load the model of the checkpoint in `folder` and let it meet its certificate.

        The checkpoint must stand in its run's folder, whose token shards it needs: DataError when they are not there
        or damaged. Raises CheckpointError when the certificate fails.
        """
        loaded = load_folder(folder, verify=False)
        if loaded.record.is_imported:
            return DeepResult("none, as it was imported: no loss of it was ever measured here", compared=True)
        if loaded.record.certificate is None:
            return DeepResult("none in it: neither the model's loss nor its data were compared", compared=False)
        return DeepResult(check_certificate(self._witness(loaded), loaded), compared=True)

    def _witness(self, loaded: LoadedCheckpoint) -> Witness:
        config = config_from_resolved(loaded.run_config, str(loaded.path / "run.json"))
        tokenizer = load_tokenizer(loaded.path / "tokenizer.json")
        rows, order = self._open_rows(config, tokenizer, loaded)
        spec = model_spec(config, tokenizer.vocab_size)
        compute = replace(make_compute(config, spec, self._backend.device().kind), compile=False)
        return Witness(
            # Whatever the run's optimizer: a loss takes the weights alone.
            learner=self._backend.learner(spec, OptimSpec(), compute, loaded.weights),
            device=self._backend.device(),
            precision=compute.precision,
            rows=rows,
            order=order,
            micro_batch_size=micro_batch_at(config, loaded.record.step),
            steps_back=1 if config.data.streaming else 0,
        )

    def _open_rows(
        self, config: RunConfig, tokenizer: Tokenizer, loaded: LoadedCheckpoint
    ) -> tuple[NumberedRows, Order]:
        root, advice = loaded.path.resolve().parent.parent, "the checkpoint's certificate is about those"
        data = stored_data(config, root, tokenizer, loaded, verify=False, advice=advice)
        if isinstance(data, TokenData) and data.folder not in self._verified:
            open_tokens(data.folder)
            self._verified.add(data.folder)
        return rows_and_order(config, data, self._say)
