"""`sconce checkpoint verify --deep`: reproduce stored checkpoints' certificates."""

from dataclasses import dataclass, replace
from pathlib import Path

from sconce.backend import Hardware, load_backend
from sconce.checkpoint.load import LoadedCheckpoint, load_folder
from sconce.config import RunConfig, config_from_resolved, micro_batch_at, model_spec, ramp
from sconce.data.order import Order
from sconce.data.rows import NumberedRows, open_train_rows
from sconce.data.shards import TokenData, open_tokens
from sconce.errors import DataError
from sconce.optim import OptimSpec
from sconce.tokenizer.bpe import Tokenizer, load_tokenizer
from sconce.training.certificate import Witness, check_certificate
from sconce.training.recipe import make_compute, train_order
from sconce.training.stream import CachedStream
from sconce.training.tokens import Say, shards_folder, shards_there


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
        self._tokens: dict[Path, TokenData] = {}

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
        compute = replace(make_compute(config, spec), compile=False)
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
        root = loaded.path.resolve().parent.parent
        if config.data.streaming:
            cached = CachedStream(config, root, tokenizer, loaded)
            return cached.train, cached.order
        tokens = self._open_tokens(shards_folder(config, root, tokenizer), tokenizer, loaded)
        mixed = bool(config.data.weights)
        rows = open_train_rows(tokens, ramp(config).longest, config.data.packing, mixed, self._say)
        return rows, train_order(config, rows.sizes)

    def _open_tokens(self, place: Path, tokenizer: Tokenizer, loaded: LoadedCheckpoint) -> TokenData:
        if shards_there(place, tokenizer, loaded, verify=False) is None:
            raise DataError(f"{place}: not the token shards of this checkpoint's run, which its certificate is about")
        if place not in self._tokens:
            self._tokens[place] = open_tokens(place)
        return self._tokens[place]
