"""What a checkpoint says about itself: manifest.json, written last, so its presence is the commit."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NotRequired, cast

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from sconce.backend import LossScale, Precision
from sconce.errors import CheckpointError
from sconce.typed import checked

FORMAT = 3
MANIFEST = "manifest.json"
IMPORTED = "sconce import"  # the backend that an imported checkpoint names


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose files are not what was written: truncated, changed, or gone."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size and hex SHA-256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the next micro-batch gives at these weights, nothing dropped: a resumed run must reproduce it.

    `rows` are row numbers, `tokens_sha256` is of them and their tokens (`data.batches.rows_sha256`), `loss` is mean
    nats a token, `nats` are those of the first row's first tokens. NaN stands for any that is not finite.
    """

    rows: tuple[int, ...]
    tokens_sha256: str
    loss: float
    nats: tuple[float, ...]

    @property
    def is_finite(self) -> bool:
        """Whether the model still gives a loss: not once its training has diverged."""
        return math.isfinite(self.loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One manifest. `step` and `tokens` count what was trained on; `best` is (step, held-out loss) so far.

    `cursor` says which data come next; `certificate` is None where nothing was trained here, as after an import;
    `loss_scale` is fp16's; `files` is filled in by whoever writes them.
    """

    step: int
    tokens: int
    cursor: Mapping[str, object]
    best: tuple[int, float] | None
    certificate: Certificate | None = None
    loss_scale: LossScale | None = None
    backend: str
    precision: Precision
    versions: Mapping[str, str]
    hardware: Mapping[str, object]
    files: Mapping[str, FileRecord] = field(default_factory=dict[str, FileRecord])

    @property
    def is_imported(self) -> bool:
        """Whether another system trained it: no rows of ours, and nothing to certify."""
        return self.backend == IMPORTED

    @property
    def imported_steps(self) -> int:
        """The first steps, which another system did: on which rows is not known, and no hash here covers them."""
        return self.step if self.is_imported else cast(int, self.cursor.get("imported_steps", 0))

    @property
    def stream(self) -> Mapping[str, Any]:
        """Of a run on a stream: `commits` of its data sets, where `windows` start, `total_rows`; of another {}."""
        return cast(Mapping[str, Any], self.cursor.get("stream", {}))

    @property
    def commits(self) -> Mapping[str, str]:
        """The data sets of the hub that it was trained on, by address, each with its commit."""
        return cast(Mapping[str, str], self.stream.get("commits") or self.cursor.get("commits", {}))

    @property
    def tokenizer_sha256(self) -> str:
        """Which tokenizer the run was trained with; empty for a checkpoint without one."""
        file = self.files.get("tokenizer.json")
        return "" if file is None else file.sha256


_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_FileName = Annotated[str, Field(pattern=r"^[^/\\\x00]+$", max_length=255)]  # of a file beside the manifest


class _BestFields(TypedDict):
    step: _Count
    loss: float


class _StreamFields(TypedDict):
    commits: dict[str, str]
    windows: list[tuple[_Count, _Count, _Count, _Count, _Count, str]]
    total_rows: _Count | None


class _CursorFields(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # pyright: ignore[reportGeneralTypeIssues] (pydantic's custom)
    fingerprint: NotRequired[str | None]
    seed: NotRequired[int]
    rows_consumed: NotRequired[_Count]
    rows_sha256: NotRequired[_Sha256]
    imported_steps: NotRequired[_Count]
    commits: NotRequired[dict[str, str]]
    stream: NotRequired[_StreamFields]


class _CertificateFields(TypedDict):
    rows: Annotated[list[_Count], Field(min_length=1)]
    tokens_sha256: str
    loss: float | None
    nats: list[float | None]


class _LossScaleFields(TypedDict):
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    clean_updates: _Count


class _FileFields(TypedDict):
    bytes: _Count
    sha256: _Sha256


class _Fields(TypedDict):
    format: int
    step: _Count
    tokens: _Count
    cursor: _CursorFields
    best: _BestFields | None
    certificate: _CertificateFields | None
    loss_scale: _LossScaleFields | None
    backend: str
    precision: Precision
    versions: dict[str, str]
    hardware: dict[str, object]
    files: dict[_FileName, _FileFields]


def manifest_bytes(record: Checkpoint) -> bytes:
    """The content of manifest.json; its last entry is a checksum over all others."""
    best, certificate, scale = record.best, record.certificate, record.loss_scale
    fields: _Fields = {
        "format": FORMAT,
        "step": record.step,
        "tokens": record.tokens,
        "cursor": cast(_CursorFields, dict(record.cursor)),
        "best": None if best is None else {"step": best[0], "loss": best[1]},
        "certificate": None if certificate is None else _certificate_fields(certificate),
        "loss_scale": None if scale is None else {"scale": scale.scale, "clean_updates": scale.clean_updates},
        "backend": record.backend,
        "precision": record.precision,
        "versions": dict(record.versions),
        "hardware": dict(record.hardware),
        "files": {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in record.files.items()},
    }
    return (json.dumps({**fields, "sha256": _checksum(fields)}, indent=2) + "\n").encode()


def _certificate_fields(certificate: Certificate) -> _CertificateFields:
    return {
        "rows": list(certificate.rows),
        "tokens_sha256": certificate.tokens_sha256,
        "loss": _finite(certificate.loss),
        "nats": [_finite(nats) for nats in certificate.nats],
    }


def _finite(value: float) -> float | None:
    """As JSON can say it."""
    return value if math.isfinite(value) else None


def read_manifest(folder: Path) -> Checkpoint:
    """The record in `folder`.

    Raises DamagedCheckpointError when it is missing or not as written, CheckpointError when it is intact but of a
    format that this version cannot read.
    """
    path = folder / MANIFEST
    try:
        content: object = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{folder}: no {MANIFEST}, so it was never finished") from None
    except (ValueError, RecursionError):
        raise DamagedCheckpointError(f"{path}: not JSON") from None
    if not isinstance(content, dict) or content.keys().isdisjoint(("step", "cursor")):  # a tokenizer's, say
        raise DamagedCheckpointError(f"{path}: not a checkpoint's manifest")
    manifest = cast(dict[str, object], content)
    if manifest.pop("sha256", None) != _checksum(manifest):
        raise DamagedCheckpointError(f"{path}: not as it was written (its checksum does not match)")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {manifest.get('format')!r}, and this version of Sconce reads format {FORMAT}: "
            "use the version that wrote it"
        )
    try:
        return _parse(checked(_manifest_type(), manifest))
    except ValueError as error:
        raise DamagedCheckpointError(f"{path}: not a checkpoint's manifest ({error})") from None


@cache
def _manifest_type() -> TypeAdapter[_Fields]:
    return TypeAdapter(_Fields)


def _parse(fields: _Fields) -> Checkpoint:
    best, certificate, scale = fields["best"], fields["certificate"], fields["loss_scale"]
    return Checkpoint(
        step=fields["step"],
        tokens=fields["tokens"],
        cursor=cast(Mapping[str, object], fields["cursor"]),
        best=None if best is None else (best["step"], best["loss"]),
        certificate=None if certificate is None else _parse_certificate(certificate),
        loss_scale=None if scale is None else LossScale(scale["scale"], scale["clean_updates"]),
        backend=fields["backend"],
        precision=fields["precision"],
        versions=fields["versions"],
        hardware=fields["hardware"],
        files={name: FileRecord(file["bytes"], file["sha256"]) for name, file in fields["files"].items()},
    )


def _parse_certificate(fields: _CertificateFields) -> Certificate:
    loss, *nats = (math.nan if value is None else value for value in (fields["loss"], *fields["nats"]))
    return Certificate(tuple(fields["rows"]), fields["tokens_sha256"], loss, tuple(nats))


def _checksum(fields: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
